"""The Python code of the pages and examples runs."""

import os
import re
import subprocess
import sys

import checkpoints
import flute
import pytest

ROOT = checkpoints.ROOT
BLOCKS = {
    f"{page}-{index}": block
    for page in ("README.md", "docs/python.md")
    for index, block in enumerate(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M))
}


def run(arguments, folder):
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "FLUTE_LIBRARY": str(flute.library_path)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", BLOCKS)
def test_code_of_the_pages(name, quantized, tmp_path):
    (tmp_path / "small-3-bit").symlink_to(quantized)
    run(["-c", BLOCKS[name]], tmp_path)


def test_pytorch_code_of_the_page(quantized, tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    if not flute.library_path.with_name("libflute_torch.so").exists():
        pytest.skip(f"no PyTorch operator beside {flute.library_path}")
    (tmp_path / "small-3-bit").symlink_to(quantized)
    (block,) = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.S | re.M)
    run(["-c", block], tmp_path)


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.name)
def test_examples(example, tmp_path):
    assert "error" in run([example], tmp_path)
