"""The `flute` program from a user's side: what each command answers, and how each failure looks.

FLUTE_PROGRAM names the program (default: build/flute).
"""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from checkpoints import LLAMA, TEXT, read_checkpoint, tiny_llama, to_bf16, write_checkpoint

COMMANDS = ["quantize", "inspect", "dequantize", "perplexity", "compare", "generate", "bench", "tokenize"]


def listing(folder):
    """Every path below, with sizes: what "nothing left behind" is measured against."""
    return sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*"))


# ------------------------------------------------------------------------------------------------ the program itself


def test_version(flute):
    assert re.fullmatch(r"flute \d+\.\d+\.\d+\n", flute("--version").stdout)


def test_help_lists_every_command(flute):
    text = flute("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", text, re.M), command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(flute, command):
    text = flute(command, "--help").stdout
    assert "Example" in text and f"\n  flute {command}" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    "arguments,mentions",
    [
        (["nosuch"], ["nosuch", "quantize", "generate"]),
        (["--nosuch"], ["--nosuch"]),
        (["quantize"], ["source"]),
        (["quantize", "a"], ["target"]),
        (["quantize", "a", "b", "c"], ["c"]),
        (["quantize", "a", "b", "--bits", "9"], ["--bits", "9", "2", "8"]),
        (["quantize", "a", "b", "--bits", "1"], ["--bits", "1", "2", "8"]),
        (["quantize", "a", "b", "--bits", "four"], ["--bits", "four"]),
        (["quantize", "a", "b", "--group-size", "48"], ["--group-size", "48", "64", "256"]),
        (["quantize", "a", "b", "--codebook", "nosuch"], ["--codebook", "nosuch", "nf", "kmeans"]),
        (["quantize", "a", "b", "--codebook", "e3m2", "--bits", "4"], ["--codebook", "e3m2"]),
        (["quantize", "a", "b", "--method", "awp"], ["--method", "awp", "rtn"]),
        (["quantize", "a", "b", "--method", "gptq"], ["--method", "gptq", "--calibration"]),
        (["quantize", "a", "b", "--method", "awq"], ["--method", "awq", "--calibration"]),
        (["quantize", "a", "b", "--method", "awq", "--calibration", "t", "--clip", "0.9"], ["--clip", "awq", "0.9"]),
        (["quantize", "a", "b", "--method", "mse", "--clip", "0.9"], ["--clip", "mse", "0.9"]),
        (["quantize", "a", "b", "--method", "mse", "--calibration", "t"], ["--calibration", "ldlq", "mse"]),
        (["quantize", "a", "b", "--method", "rtn", "--calibration", "t"], ["--calibration", "ldlq", "rtn"]),
        (["quantize", "a", "b", "--calibration", "t", "--clip", "0.9"], ["--clip", "ldlq", "0.9"]),
        (["quantize", "a", "b", "--scale-dtype", "fp8"], ["--scale-dtype", "fp8", "bf16"]),
        (["quantize", "a", "b", "--clip", "0"], ["--clip", "'0'"]),
        (["quantize", "a", "b", "--clip", "nan"], ["--clip", "nan"]),
        (["quantize", "a", "b", "--clip", "1.5"], ["--clip", "1.5"]),
        (["quantize", "a", "b", "--include", "a("], ["--include", "a("]),
        (["quantize", "a", "b", "--exclude", "[z"], ["--exclude", "[z"]),
        (["quantize", "a", "b", "--layer-bits", "down"], ["--layer-bits", "REGEX=N", "down"]),
        (["quantize", "a", "b", "--layer-bits", "down=9"], ["--layer-bits", "down=9"]),
        (["quantize", "a", "b", "--layer-bits", "=4"], ["--layer-bits", "=4"]),
        (["quantize", "a", "b", "--layer-bits", "a(=4"], ["--layer-bits", "a("]),
        (["quantize", "a", "b", "--threads", "0"], ["--threads", "0"]),
        (["dequantize", "a", "b", "--dtype", "int8"], ["--dtype", "int8", "fp16"]),
        (["perplexity", "a"], ["text"]),
        (["perplexity", "a", "b", "--window", "1"], ["--window", "1"]),
        (["compare", "a"], ["--text"]),
        (["generate", "a"], ["--prompt"]),
        (["generate", "a", "-p", "x", "-n", "-1"], ["--tokens", "-1"]),
        (["generate", "a", "-p", "x", "--temperature", "-1"], ["--temperature", "-1"]),
        (["generate", "a", "-p", "x", "--top-p", "2"], ["--top-p", "2"]),
    ],
)
def test_wrong_usage_says_what_is_expected(flute, tmp_path, arguments, mentions):
    flute.fails(*arguments, mentions=mentions, code=2, cwd=tmp_path)
    assert listing(tmp_path) == []


def test_no_command_shows_help_and_fails(flute):
    assert "quantize" in flute(code=2).stderr


def test_a_reader_that_goes_away_is_no_error(flute):
    process = flute.start("inspect", LLAMA, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE


def test_output_that_cannot_be_written_is_an_error(flute):
    with open("/dev/full", "w") as full:
        process = flute.start("inspect", LLAMA, stdout=full, stderr=subprocess.PIPE)
        assert b"standard output" in process.stderr.read()
        assert process.wait() == 1


def test_no_colours_outside_a_terminal(flute):
    environment = {**os.environ, "TERM": "xterm-256color"}
    assert "\x1b" not in flute("inspect", LLAMA, env=environment).stdout


def open_terminal():
    """Both sides of a pseudo-terminal, which a bare chroot or container may not have."""
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"needs /dev/pts: {error}")


def on_a_terminal(command, environment):
    """Runs it with standard output on a terminal; returns what it wrote there."""
    parent, child = open_terminal()
    process = subprocess.Popen(command, stdout=child, env=environment)
    os.close(child)
    text = b""
    try:
        while piece := os.read(parent, 65536):
            text += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(parent)
    assert process.wait() == 0
    return text.decode()


def test_colours_on_a_terminal_unless_refused(flute):
    command = [flute.program, "inspect", str(LLAMA)]
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    assert "\x1b[" in on_a_terminal(command, environment)
    assert "\x1b[" not in on_a_terminal(command, {**environment, "NO_COLOR": "1"})


# ------------------------------------------------------------------------------------------------- quantize, inspect


def test_bits_alone_means_nf_groups_of_64_fp16(flute, tiny, tmp_path):
    flute("quantize", tiny, tmp_path / "out", "--bits", "4")
    report = json.loads(flute("inspect", tmp_path / "out", "--json").stdout)
    assert len(report["layers"]) == 14
    for layer in report["layers"]:
        assert (layer["bits"], layer["group_size"], layer["codebook"]) == (4, 64, "nf")
    tensors = read_checkpoint(tmp_path / "out")
    assert tensors["model.layers.0.mlp.up_proj.weight_scale"].dtype == np.float16
    assert "lm_head.weight" in tensors and "model.layers.0.mlp.up_proj.weight" not in tensors


def test_inspect_json_adds_up(flute, quantized):
    report = json.loads(flute("inspect", quantized, "--json").stdout)
    for layer in report["layers"]:
        assert {"name", "n", "k", "bits", "group_size", "bytes"} <= set(layer)
    of_layers = 8 * sum(layer["bytes"] for layer in report["layers"])
    weights = sum(layer["n"] * layer["k"] for layer in report["layers"])
    assert report["bits_per_weight"] == pytest.approx(of_layers / weights)
    assert 4.25 < report["bits_per_weight"] < 4.27  # codes, scales and a small table
    entries = report["layers"] + report["tensors"]
    assert report["bytes"] == sum(entry["bytes"] for entry in entries)
    assert report["bytes"] == sum(array.nbytes for array in read_checkpoint(quantized).values())
    assert report["total_bits_per_weight"] == pytest.approx(8 * report["bytes"] / report["elements"])


def test_inspect_shows_a_plain_checkpoint_too(flute):
    report = json.loads(flute("inspect", LLAMA, "--json").stdout)
    assert report["bits_per_weight"] == 16 and not report["quantized"]
    assert {layer["name"] for layer in report["layers"]} >= {"lm_head.weight", "model.layers.0.mlp.up_proj.weight"}
    assert "2048 x 256" in flute("inspect", LLAMA).stdout
    assert "BF16" in flute("inspect", LLAMA / "model-00001-of-00003.safetensors").stdout


def test_inspect_against_the_original_measures_the_error(flute, quantized, tmp_path):
    report = json.loads(flute("inspect", quantized, "--against", LLAMA, "--json").stdout)
    plain = tmp_path / "plain"
    flute("dequantize", quantized, plain, "--dtype", "fp32")
    original, rounded = read_checkpoint(LLAMA), read_checkpoint(plain)
    for layer in report["layers"]:
        name = layer["name"] + ".weight"
        w = (original[name].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        error = np.linalg.norm(w - rounded[name]) / np.linalg.norm(w)
        assert layer["relative_error"] == pytest.approx(error, rel=1e-4), name


def test_inspect_shows_no_errors_of_layers_that_took_scales(flute, tmp_path):
    """A layer of method awq minus the original's layer is not an error: scales were folded into it."""
    text = ("--calibration", TEXT, "--calibration-tokens", 512)
    flute("quantize", LLAMA, tmp_path / "out", "--method", "awq", *text)
    result = flute("inspect", tmp_path / "out", "--against", LLAMA, "--json")
    assert not any("relative_error" in layer for layer in json.loads(result.stdout)["layers"])
    assert "awq" in result.stderr


def test_inspect_layer_counts_the_codes(flute, quantized):
    name = "model.layers.1.mlp.down_proj"
    detail = json.loads(flute("inspect", quantized, "--layer", name, "--json").stdout)
    words = read_checkpoint(quantized)[name + ".weight_packed"]
    codes = (words.view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    assert detail["code_counts"] == np.bincount(codes.ravel(), minlength=16).tolist()
    assert detail["codebook"][0] == -1 and detail["codebook"][7] == 0
    text = flute("inspect", quantized, "--layer", name + ".weight").stdout
    assert "256 x 768" in text and "-0.69619" in text
    flute.fails("inspect", quantized, "--layer", "nosuch", mentions=["nosuch"])


def test_dry_run_writes_nothing_and_says_what_would_be(flute, tiny, tmp_path):
    before = listing(tmp_path)
    plan = json.loads(flute("quantize", tiny, "--dry-run", "--bits", "3", "--json").stdout)
    assert "nothing written" in flute("quantize", tiny, tmp_path / "out", "--dry-run").stdout
    assert listing(tmp_path) == before
    flute("quantize", tiny, tmp_path / "out", "--bits", "3")
    made = json.loads(flute("inspect", tmp_path / "out", "--json").stdout)
    key = lambda layer: (layer["name"], layer["bits"], layer["bytes"])  # noqa: E731
    assert sorted(map(key, plan["layers"])) == sorted(map(key, made["layers"]))
    assert plan["bytes"] == made["bytes"] < plan["bytes_before"]


def test_include_exclude_and_layer_bits(flute, tiny, tmp_path):
    flute(
        *("quantize", tiny, tmp_path / "out", "--bits", 4, "--include", "lm_head", "--exclude", r"layers\.0\."),
        *("--exclude", "k_proj", "--layer-bits", "down_proj=6", "--layer-bits", r"layers\.1\.mlp=3"),
    )
    layers = json.loads(flute("inspect", tmp_path / "out", "--json").stdout)["layers"]
    bits = {layer["name"]: layer["bits"] for layer in layers}
    assert bits == {
        "lm_head": 4,
        "model.layers.1.self_attn.q_proj": 4,
        "model.layers.1.self_attn.v_proj": 4,
        "model.layers.1.self_attn.o_proj": 4,
        "model.layers.1.mlp.gate_proj": 3,
        "model.layers.1.mlp.up_proj": 3,
        "model.layers.1.mlp.down_proj": 6,
    }


def test_a_codebook_file_brings_its_bits(flute, tiny, tmp_path):
    values = [-1.0, -0.4, 0.0, 0.1, 0.3, 0.5, 0.8, 1.0]
    (tmp_path / "table.json").write_text(json.dumps({"bits": 3, "values": values}))
    flute("quantize", tiny, tmp_path / "out", "--codebook", tmp_path / "table.json", "--group-size", "-1")
    name = "model.layers.0.self_attn.q_proj"
    detail = json.loads(flute("inspect", tmp_path / "out", "--layer", name, "--json").stdout)
    assert detail["bits"] == 3 and detail["group_size"] == -1
    assert detail["codebook"] == pytest.approx(values)


@pytest.mark.parametrize(
    "name,bits,largest",
    [
        ("e1m1", 3, 3),
        ("e2m1", 4, 6),
        ("e2m2", 5, 7),
        ("e2m3", 6, 7.5),
        ("e3m2", 6, 28),
        ("e3m3", 7, 30),
        ("e4m3", 8, 448),
    ],
)
def test_every_small_float_has_a_name(flute, tiny, tmp_path, name, bits, largest):
    flute("quantize", tiny, tmp_path / "out", "--codebook", name, "--bits", bits)
    layers = json.loads(flute("inspect", tmp_path / "out", "--json").stdout)["layers"]
    assert {layer["codebook"] for layer in layers} == {name}
    detail = json.loads(flute("inspect", tmp_path / "out", "--layer", layers[0]["name"], "--json").stdout)
    assert max(detail["codebook"]) == largest


def test_other_files_are_carried_over(flute, tiny, tmp_path):
    (tiny / "README.md").write_text("hello")
    flute("quantize", tiny, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "hello"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "flute"


def test_overwrite_replaces_only_when_asked(flute, tiny, tmp_path):
    flute("quantize", tiny, tmp_path / "out", "--bits", 4)
    before = listing(tmp_path)
    flute.fails("quantize", tiny, tmp_path / "out", "--bits", 2, mentions=["out", "--overwrite"])
    assert listing(tmp_path) == before
    flute("quantize", tiny, tmp_path / "out", "--bits", 2, "--overwrite")
    assert json.loads(flute("inspect", tmp_path / "out", "--json").stdout)["layers"][0]["bits"] == 2


def test_result_does_not_depend_on_threads(flute, tiny, tmp_path):
    for threads in (1, 3):
        flute("quantize", tiny, tmp_path / str(threads), "--codebook", "kmeans", "--threads", threads)
    one, three = (read_checkpoint(tmp_path / str(threads)) for threads in (1, 3))
    assert one.keys() == three.keys()
    assert all(np.array_equal(one[name], three[name]) for name in one)


def test_shards_stay_shards(flute, tmp_path):
    flute("quantize", tiny_llama(tmp_path / "in", shards=3), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(read_checkpoint(tmp_path / "out"))


def test_any_checkpoint_can_be_quantized_by_its_names(flute, tmp_path):
    rng = np.random.default_rng(5)
    tensors = {
        f"encoder.layers.{i}.attn.{name}_proj.weight": to_bf16(rng.standard_normal((32, 64)).astype(np.float32))
        for i in range(2)
        for name in "qkvo"
    }
    folder = write_checkpoint(tmp_path / "in", tensors, {"architectures": ["NobodysModel"], "model_type": "nobody"})
    flute("quantize", folder, tmp_path / "out")
    assert len(json.loads(flute("inspect", tmp_path / "out", "--json").stdout)["layers"]) == 8
    flute("dequantize", tmp_path / "out", tmp_path / "plain")
    assert set(read_checkpoint(tmp_path / "plain")) == set(tensors)
    for command in (["perplexity", folder, TEXT], ["generate", folder, "-p", "x"]):
        flute.fails(*command, mentions=["NobodysModel"])


@pytest.mark.parametrize("dtype,name", [("bf16", "uint16"), ("fp16", "float16"), ("fp32", "float32")])
def test_dequantize_gives_a_plain_checkpoint(flute, tiny, tmp_path, dtype, name):
    flute("quantize", tiny, tmp_path / "q", "--bits", 8, "--codebook", "int", "--group-size", 32)
    flute("dequantize", tmp_path / "q", tmp_path / "plain", "--dtype", dtype)
    original, plain = read_checkpoint(tiny), read_checkpoint(tmp_path / "plain")
    assert plain.keys() == original.keys()
    assert plain["model.layers.0.mlp.up_proj.weight"].dtype == name
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


# ------------------------------------------------------------------------------------ perplexity, generate, compare


def reference():
    return json.loads((LLAMA / "reference.json").read_text())


def test_perplexity_is_the_reference(flute):
    answer = json.loads(flute("perplexity", LLAMA, TEXT, "--json").stdout)
    assert answer["predictions"] == reference()["test_predictions"]
    assert answer["perplexity"] == pytest.approx(reference()["test_ppl"], rel=2e-4)


def test_perplexity_of_a_quantized_model_is_that_of_its_dequantized_self(flute, quantized, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes()[:8000])
    flute("dequantize", quantized, tmp_path / "plain", "--dtype", "fp32")
    pair = [
        json.loads(flute("perplexity", folder, text, "--json").stdout) for folder in (quantized, tmp_path / "plain")
    ]
    assert pair[0]["predictions"] == pair[1]["predictions"]
    assert pair[0]["perplexity"] == pytest.approx(pair[1]["perplexity"], rel=5e-4)


def test_perplexity_reads_standard_input_and_takes_a_window(flute, tiny):
    text = TEXT.read_text()[:3000]
    answer = json.loads(flute("perplexity", tiny, "-", "--window", 64, "--json", input=text).stdout)
    assert answer["predictions"] % 63 == 0 and answer["predictions"] > 0
    # A model of random weights knows next to nothing: about as good as guessing among 2048 tokens.
    assert 1000 < answer["perplexity"] < 10000
    assert re.match(r"perplexity [\d.]+ \(", flute("perplexity", tiny, "-", "--window", 64, input=text).stdout)


def test_generate_gives_the_reference_ids(flute):
    for sample in reference()["samples"]:
        count = len(sample["greedy_ids"]) - len(sample["input_ids"])
        command = ["generate", LLAMA, "-p", sample["prompt"], "-n", count, "--temperature", 0, "--json"]
        answer = json.loads(flute(*command).stdout)
        assert answer["ids"] == sample["greedy_ids"]
        assert answer["text"].startswith(sample["prompt"])
        assert 0 < answer["multiply_fraction"] <= 1
        assert answer["decode_tokens_per_second"] > 0 and answer["prompt_tokens_per_second"] > 0


def test_generate_streams_text_and_reports_speed_apart(flute):
    sample = reference()["samples"][0]
    result = flute("generate", LLAMA, "-p", "-", "-n", 24, input=sample["prompt"])
    answer = json.loads(flute("generate", LLAMA, "-p", sample["prompt"], "-n", 24, "--json").stdout)
    assert result.stdout == answer["text"] + "\n"
    assert re.search(r"prompt \d+ tokens, \S+ tokens/s; decode \d+ tokens, \S+ tokens/s", result.stderr)


def test_generate_draws_repeatably(flute):
    command = ["generate", LLAMA, "-p", "The", "-n", 24, "--temperature", 1.2, "--top-p", 0.95, "--top-k", 50, "--json"]
    draws = [json.loads(flute(*command, "--seed", seed).stdout)["ids"] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    unseeded = json.loads(flute(*command).stdout)
    assert json.loads(flute(*command, "--seed", unseeded["seed"]).stdout)["ids"] == unseeded["ids"]


def test_generate_nothing_is_just_the_prompt(flute):
    answer = json.loads(flute("generate", LLAMA, "-p", "The", "-n", 0, "--json").stdout)
    assert answer["new_tokens"] == 0 and answer["text"] == "The"


def test_chat_needs_a_chat_model(flute):
    flute.fails("generate", LLAMA, "-p", "hi", "--chat", mentions=["chat"])


def test_compare_puts_models_side_by_side(flute, quantized, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes()[:8000])
    report = tmp_path / "report.html"
    command = ["compare", LLAMA, quantized, "--text", text, "--window", 128, "--tokens", 16]
    answer = json.loads(flute(*command, "--report", report, "--generate", "The <b>", "--json").stdout)
    plain, nf4 = answer["models"]
    assert not plain["quantized"] and nf4["quantized"]
    assert plain["bits_per_weight"] == 16 and 4.25 < nf4["bits_per_weight"] < 4.27
    assert nf4["perplexity_increase"] == pytest.approx(nf4["perplexity"] / plain["perplexity"] - 1)
    assert 0 < nf4["perplexity_increase"] < 0.2
    assert plain["decode_tokens_per_second"] > 0
    alone = json.loads(flute("perplexity", quantized, text, "--window", 128, "--json").stdout)
    assert nf4["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-9)

    page = report.read_text()
    assert page.count("<svg") >= 4 and "The &lt;b&gt;" in page
    assert not re.search(r"https?://|src=|<script|url\(", page)
    assert "model.layers" in page and "docs-llama-small" in page

    lines = flute(*command).stdout.splitlines()
    assert "bits/weight" in lines[0] and lines[2].startswith("docs-llama-small") and "llama-nf4" in lines[3]


def test_compare_writes_no_half_report(flute, quantized, tmp_path):
    before = listing(tmp_path)
    command = ["compare", quantized, "--text", TEXT, "--report", tmp_path / "nosuch" / "r.html"]
    flute.fails(*command, mentions=["nosuch/r.html"])
    flute.fails("compare", quantized, "nosuch", "--text", TEXT, mentions=["nosuch"])
    assert listing(tmp_path) == before


# ------------------------------------------------------------------------------------------------------- interrupted


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A checkpoint whose k-means tables take a while."""
    rng = np.random.default_rng(3)
    matrix = to_bf16(rng.standard_normal((2048, 4096)).astype(np.float32))
    tensors = {f"model.layers.{i}.mlp.down_proj.weight": matrix for i in range(12)}
    return write_checkpoint(tmp_path_factory.mktemp("slow") / "slow", tensors, {"architectures": ["Any"]})


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(flute, slow, tmp_path, sent):
    command = ["quantize", slow, tmp_path / "out", "--codebook", "kmeans", "--bits", "8", "--threads", "1"]
    process = flute.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(tmp_path.iterdir()))
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sent, err
    lines = [line for line in err.splitlines() if not line.startswith("quantize: ")]
    assert len(lines) == 1 and "interrupted" in lines[0] and "again" in lines[0], err
    assert listing(tmp_path) == [] and out == ""


def test_a_killed_run_leaves_no_half_checkpoint_and_the_next_one_tidies_up(flute, slow, tiny, tmp_path):
    target = tmp_path / "out"
    command = ["quantize", slow, target, "--codebook", "kmeans", "--bits", "8", "--threads", "1"]
    process = flute.start(*command, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(tmp_path.iterdir())) > 1)
    process.kill()
    process.wait()
    assert not target.exists()
    flute("quantize", tiny, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny"]


def test_progress_with_rate_and_time_left_on_a_terminal(flute, slow, tmp_path):
    parent, child = open_terminal()
    command = ["quantize", slow, tmp_path / "out", "--codebook", "kmeans", "--bits", "8", "--threads", "1"]
    process = flute.start(*command, stderr=child, stdout=subprocess.DEVNULL)
    os.close(child)
    seen = bytearray()

    def read():
        try:
            while piece := os.read(parent, 4096):
                seen.extend(piece)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    bar = re.compile("quantize [█░]+ +\\d+ %  .* of 201 MB  .*/s  .* left")
    wait_for(lambda: bar.search(seen.decode(errors="ignore")) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    process.wait()
    reader.join()
    assert bar.search(seen.decode(errors="ignore")), seen.decode(errors="replace")


# ------------------------------------------------------------------------------------------------------ where to write


def test_output_folder_is_not_the_input_folder(flute, tiny, tmp_path):
    before = listing(tmp_path)
    (tmp_path / "link").symlink_to(tiny)
    for target in (tiny, f"{tiny}/", tiny / "inside", tmp_path / "link", tmp_path / "x" / ".." / "tiny", tmp_path):
        flute.fails("quantize", tiny, target, "--overwrite", mentions=[tiny.name if target != tmp_path else ""])
    (tmp_path / "link").unlink()
    assert listing(tmp_path) == before


def test_a_target_that_is_a_file(flute, tiny, tmp_path):
    (tmp_path / "out").write_text("mine")
    flute.fails("quantize", tiny, tmp_path / "out", "--overwrite", mentions=["out"])
    flute.fails("quantize", tiny, tmp_path / "out" / "below", mentions=["out"])
    assert (tmp_path / "out").read_text() == "mine"


def test_overwrite_does_not_delete_a_folder_of_something_else(flute, tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    flute.fails("quantize", tiny, tmp_path / "out", "--overwrite", mentions=["out"])
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("command", ["quantize", "dequantize"])
def test_no_space_left(flute, quantized, small_disk, command):
    source = LLAMA if command == "quantize" else quantized
    flute.fails(command, source, small_disk / "out", mentions=[str(small_disk), "No space left"])
    assert listing(small_disk) == []


def test_no_space_left_to_overwrite(flute, quantized, small_disk):
    (small_disk / "out").mkdir()
    (small_disk / "out" / "config.json").write_text('{"quantization_config": {"quant_method": "flute"}}')
    shutil.copy(quantized / "tokenizer_config.json", small_disk / "out")
    before = listing(small_disk)
    flute.fails("quantize", LLAMA, small_disk / "out", "--overwrite", mentions=[str(small_disk), "No space left"])
    assert listing(small_disk) == before


def test_a_read_only_place(flute, tiny, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    flute.fails("quantize", tiny, small_disk / "out", mentions=[str(small_disk)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission(flute, tiny, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    flute.fails("quantize", tiny, tmp_path / "closed" / "out", mentions=["closed", "Permission denied"])
    assert listing(tmp_path / "closed") == []
