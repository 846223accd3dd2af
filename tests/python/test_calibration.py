"""`flute quantize --calibration` as a user meets it: the default method, and runs that were ended early."""

import json
import signal
import subprocess
import time

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


@pytest.mark.parametrize(
    "method,expected", [(None, ("ldlq", "learned")), ("awq", ("awq", "nf")), ("gptq", ("gptq", "nf"))]
)
def test_the_best_method_is_the_default_with_text(flute, tmp_path, method, expected):
    chosen = () if method is None else ("--method", method)
    flute("quantize", LLAMA, tmp_path / "out", *FEW, "--calibration", TEXT, *chosen)
    assert method_of(tmp_path / "out") == expected


def test_rounding_is_the_default_without_text(flute, tmp_path):
    flute("quantize", LLAMA, tmp_path / "out", "--bits", 3)
    assert method_of(tmp_path / "out") == ("rtn", "nf")


def test_target_bits_say_what_they_chose(flute, tmp_path):
    command = ("--method", "gptq", "--calibration", TEXT, "--calibration-tokens", 512)
    report = json.loads(flute("quantize", LLAMA, tmp_path / "out", "--target-bits", 3.4, *command, "--json").stdout)
    assert 3.3 < report["bits_per_weight"] <= 3.4
    found = {layer["name"]: layer for layer in report["layers"]}
    chosen = {name: one for one in report["chosen"] for name in one["layers"]}
    assert chosen.keys() == found.keys()
    for name, one in chosen.items():
        assert (one["bits"], one["group_size"]) == (found[name]["bits"], found[name]["group_size"])
    words = flute("quantize", LLAMA, tmp_path / "words", "--target-bits", 3.4, "-g", 64, *command).stdout
    assert "self_attn.q_proj, k_proj, v_proj" in words and "divergence" in words
    config = json.loads((tmp_path / "words" / "config.json").read_text())["quantization_config"]
    assert config["group_size"] == 64 and all("group_size" not in one for one in config["layers"].values())


@pytest.mark.parametrize(
    "arguments,found",
    [
        ((), "expected --calibration TEXT with it"),
        (("--calibration", TEXT, "--bits", 3), "found --bits"),
        (("--calibration", TEXT, "--layer-bits", "o_proj=4"), "found --layer-bits"),
        (("--calibration", TEXT, "--dry-run"), "expected no --dry-run"),
    ],
)
def test_target_bits_refuse_what_contradicts_them(flute, tmp_path, arguments, found):
    flute.fails("quantize", LLAMA, tmp_path / "out", "--target-bits", 3.25, *arguments, code=2, mentions=[found])
    assert not (tmp_path / "out").exists()


def test_learned_normalfloat_says_where_it_is(flute, tmp_path):
    flute.fails(
        "quantize", LLAMA, tmp_path / "out", "--method", "nfl", code=2, mentions=["python -m flute.tune --method nfl"]
    )


def test_mse_needs_no_text_and_leaves_less_error(flute, tmp_path):
    errors = {}
    for method in ("rtn", "mse"):
        flute("quantize", LLAMA, tmp_path / method, "--bits", 3, "--method", method, "--layer-bits", "down_proj=4")
        report = json.loads(flute("inspect", tmp_path / method, "--against", LLAMA, "--json").stdout)
        errors[method] = {layer["name"]: layer["relative_error"] for layer in report["layers"]}
    assert method_of(tmp_path / "mse") == ("mse", "learned")
    assert all(errors["mse"][name] < error for name, error in errors["rtn"].items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_same_command_goes_on_after_a_kill(flute, tmp_path, number):
    command = ("quantize", LLAMA, tmp_path / "out", *FEW, "--calibration", TEXT)
    process = flute.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    unfinished = tmp_path / "out.flute-unfinished"
    while not (unfinished / "state.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    message = process.communicate()[1]
    if process.returncode == 0:
        pytest.skip("it was done before the signal came")
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
        assert str(unfinished) in message and "same command" in message
    assert not (tmp_path / "out").exists()

    report = json.loads(flute(*command, "--json").stdout)
    assert report["resumed_blocks"] > 0
    flute("quantize", LLAMA, tmp_path / "whole", *FEW, "--calibration", TEXT)
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
