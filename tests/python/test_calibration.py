"""`flute quantize --calibration` as a user meets it: the default method, and runs that were ended early."""

import json

import checkpoints
import pytest

TEXT = checkpoints.ROOT / "examples" / "docs-test-small.txt"
LLAMA = checkpoints.LLAMA
FEW = ("--bits", 3, "--calibration-tokens", 512)


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def method_of(folder):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return config["method"], config["codebook"]


@pytest.mark.parametrize("method,expected", [(None, ("ldlq", "learned")), ("gptq", ("gptq", "nf"))])
def test_the_best_method_is_the_default_with_text(flute, tmp_path, method, expected):
    chosen = () if method is None else ("--method", method)
    flute("quantize", LLAMA, tmp_path / "out", *FEW, "--calibration", TEXT, *chosen)
    assert method_of(tmp_path / "out") == expected


def test_rounding_is_the_default_without_text(flute, tmp_path):
    flute("quantize", LLAMA, tmp_path / "out", "--bits", 3)
    assert method_of(tmp_path / "out") == ("rtn", "nf")
