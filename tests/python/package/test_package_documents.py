"""The Python code of the pages and examples runs."""

import os
import re
import shutil
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


def run(arguments, folder, **options):
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "FLUTE_LIBRARY": str(flute.library_path)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", BLOCKS)
def test_code_of_the_pages(name, quantized, tmp_path):
    (tmp_path / "small-3-bit").symlink_to(quantized)
    run(["-c", BLOCKS[name]], tmp_path)


def need(*packages):
    """The operator, and these packages."""
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    if not flute.library_path.with_name("libflute_torch.so").exists():
        pytest.skip(f"no PyTorch operator beside {flute.library_path}")


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_pytorch_code_of_the_page(package, quantized, tmp_path):
    need("torch", package)
    shutil.copytree(quantized, tmp_path / "small-3-bit")  # one of the blocks writes there
    (tmp_path / "small").symlink_to(checkpoints.LLAMA)
    blocks = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.S | re.M)
    (block,) = (block for block in blocks if ("transformers" in block) == (package == "transformers"))
    run(["-c", block], tmp_path)


@pytest.mark.parametrize("name", ["measure_table.py", "quantize_and_multiply.py"])
def test_examples(name, tmp_path):
    assert "error" in run([ROOT / "examples" / name], tmp_path)


def test_chat_example(tmp_path):
    need("torch", "transformers")
    (tmp_path / "model").symlink_to(checkpoints.LLAMA)
    lines = "The following example shows how to\nTo compile the program\n\n"
    printed = run([ROOT / "examples" / "chat.py", "model", "3"], tmp_path, input=lines)
    assert printed.startswith("> ") and printed.endswith("> ") and len(printed.split()) > 30, printed


def test_custom_table_example(tmp_path):
    need("torch", "transformers")
    (tmp_path / "text").write_text(checkpoints.TEXT.read_text()[:20000])
    printed = run([ROOT / "examples" / "custom_table.py", checkpoints.LLAMA, "text"], tmp_path)
    found = {name: float(value) for name, value in re.findall(r"^(\S+) +perplexity ([\d.]+)$", printed, re.M)}
    assert found["original"] < found["student-t"] < 2 * found["original"], printed


def test_lora_example(quantized, tmp_path):
    need("torch", "transformers", "peft")
    shutil.copytree(quantized, tmp_path / "small-3-bit")
    shutil.copy(checkpoints.LLAMA / "tokenizer.json", tmp_path / "small-3-bit")
    (tmp_path / "text").write_text(checkpoints.TEXT.read_text()[:40000])
    printed = run([ROOT / "examples" / "lora.py", "small-3-bit", "text", "3"], tmp_path)
    assert printed.count("held-out perplexity") == 2 and (tmp_path / "small-3-bit-lora").is_dir()
