"""README and docs say what is so: links lead somewhere, options exist, figures are those of the committed results."""

import re
import shutil
import subprocess
import sys

import checkpoints
import pytest

ROOT = checkpoints.ROOT
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("bench/**/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [t for t in targets if not t.startswith(("http:", "https:")) and not (page.parent / t).exists()]
    assert not missing


def test_options_in_the_pages_exist(flute):
    """Every `flute SUBCOMMAND --option` of the pages is one that --help lists."""
    options = {}
    for page in PAGES:
        for line in page.read_text().splitlines():
            # As far as it is one command: a table's cell of README says more about the command in the cell before.
            for subcommand, rest in re.findall(r"(?:^|[`$ ])flute ([a-z]+)([^`#]*)", line):
                if subcommand not in options:
                    known = subprocess.run([flute.program, subcommand, "--help"], capture_output=True, text=True)
                    options[subcommand] = known.stdout if known.returncode == 0 else None
                for option in re.findall(r"(--[a-z][a-z-]*)", rest):
                    assert options[subcommand], f"{page.name}: flute {subcommand}"
                    assert f"{option} " in options[subcommand] or f"{option}\n" in options[subcommand], (
                        f"{page.name}: flute {subcommand} {option}"
                    )
    assert {"quantize", "bench", "inspect"} <= {name for name, known in options.items() if known}


def test_plots_and_table_are_of_the_committed_results(tmp_path):
    page = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", page)
    command = [sys.executable, ROOT / "bench/plot.py", "--out", tmp_path, "--page", page]
    subprocess.run(command, check=True, timeout=60)
    for plot in ("decode-speedup.svg", "decode-floor.svg"):
        assert (tmp_path / plot).read_bytes() == (ROOT / "docs/images" / plot).read_bytes(), plot
    assert page.read_text() == (ROOT / "README.md").read_text()


def test_speed_of_whole_models_is_of_the_committed_results(tmp_path):
    page = tmp_path / "serving.md"
    shutil.copy(ROOT / "docs/serving.md", page)
    results, image = ROOT / "bench/results/e2e-h100.json", tmp_path / "e2e.svg"
    subprocess.run([sys.executable, ROOT / "bench/e2e/draw.py", results, image, page], check=True, timeout=60)
    assert image.read_bytes() == (ROOT / "docs/images/e2e-speedup.svg").read_bytes()
    assert page.read_text() == (ROOT / "docs/serving.md").read_text()


def test_quality_page_is_of_the_committed_results(tmp_path):
    page = tmp_path / "quality.md"
    shutil.copy(ROOT / "docs/quality.md", page)
    command = [sys.executable, ROOT / "bench/quality/report.py", "--image", tmp_path / "quality.svg", "--page", page]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "quality.svg").read_bytes() == (ROOT / "docs/images/quality.svg").read_bytes()
    assert page.read_text() == (ROOT / "docs/quality.md").read_text()


def test_no_kernel_spills(flute):
    """Of the program's own build folder, where it has a library with kernels and cuobjdump is there to read it."""
    build = ROOT / "build" if flute.program == str(ROOT / "build/flute") else None
    cuobjdump = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if build is None or not (build / "libflute.so").exists() or not cuobjdump:
        pytest.skip("needs build/libflute.so and cuobjdump")
    listing = subprocess.run([cuobjdump, "--list-elf", build / "libflute.so"], capture_output=True, text=True)
    if "sm_" not in listing.stdout:
        pytest.skip("build/libflute.so has no CUDA kernels")
    command = [sys.executable, ROOT / "bench/gpu/kernel_table.py", build, "--cuobjdump", cuobjdump]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
