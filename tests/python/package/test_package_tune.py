"""flute.tune: scales and tables learn, nothing else changes, and the program gets the perplexity that is reported.

What needs PyTorch and transformers 5 is skipped without them; all of it needs the program (FLUTE_PROGRAM).
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import checkpoints
import flute
import numpy as np
import pytest
from flute.tune import tune

CALIBRATION = checkpoints.EXAMPLES / "docs-calibration-small.txt"
QUICK = {"text": CALIBRATION, "steps": 3, "tokens": 128, "window": 64}  # for what does not depend on how much it learns
# Of the two models: what is quantized and how. Gemma's head is tied to its embedding.
MODELS = {
    "llama": (checkpoints.LLAMA, ("--bits", "3")),
    "gemma2": (checkpoints.GEMMA, ("--bits", "2", "--codebook", "kmeans", "--include", "lm_head")),
}


def has_pytorch():
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        return False
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


needs_pytorch = pytest.mark.skipif(not has_pytorch(), reason="PyTorch and transformers 5 are not installed")


@pytest.fixture(scope="module")
def program(request):
    """The program; the fixture of that purpose is called as this package is."""
    return request.getfixturevalue("flute")


@pytest.fixture
def small(program, tiny):
    """A tiny model of random weights, and the same quantized."""
    program("quantize", tiny, tiny.parent / "q", "--bits", "3", "--group-size", "32")
    return tiny, tiny.parent / "q"


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Text of documents that those to learn from are not among."""
    path = tmp_path_factory.mktemp("held-out") / "text"
    path.write_text(checkpoints.TEXT.read_text()[:16000])
    return path


@pytest.fixture(scope="module", params=MODELS)
def tuned(request, program, held_out, tmp_path_factory):
    """The folders quantized and tuned, and the report."""
    if not has_pytorch():
        pytest.skip("PyTorch and transformers 5 are not installed")
    source, options = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    program("quantize", source, folder / "q", *options)
    few = {"steps": 20, "tokens": 256, "window": 256, "learning_rate": 5e-3}
    report = tune(source, folder / "q", folder / "tuned", text=CALIBRATION, held_out=held_out, **few)
    return folder / "q", folder / "tuned", report


def parts_of(name):
    return name.rpartition(".")[2]


def perplexity(program, folder, text, *options):
    return json.loads(program("perplexity", folder, text, "--json", *options).stdout)


def test_only_scales_and_tables_change(tuned):
    before, after = (checkpoints.read_checkpoint(folder) for folder in tuned[:2])
    assert list(before) == list(after)
    for name, array in before.items():
        assert (array.dtype, array.shape) == (after[name].dtype, after[name].shape), name
        learns = parts_of(name) in ("weight_scale", "weight_codebook")
        assert np.array_equal(array, after[name]) != learns, name
    assert {path.name for path in tuned[0].iterdir()} == {path.name for path in tuned[1].iterdir()}
    for path in tuned[0].iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            assert path.read_bytes() == (tuned[1] / path.name).read_bytes(), path


def test_each_matrix_learns_a_table_of_its_own(tuned):
    """Also those that are multiplied as one: q, k and v."""
    layers = flute.Checkpoint(tuned[1])
    tables = {name: q.codebook for name, q in layers.items()}
    assert all(table.shape == (1 << layers[name].bits,) for name, table in tables.items())
    assert len({table.tobytes() for table in tables.values()}) == len(tables) == tuned[2].layers


def test_config_says_so_and_keeps_the_rest(tuned):
    before, after = (json.loads((folder / "config.json").read_text()) for folder in tuned[:2])
    changed = {**before["quantization_config"], "codebook": "learned", "tuned": True}
    assert after == {**before, "quantization_config": changed}


def test_the_divergence_falls_on_text_that_it_did_not_learn_from(tuned):
    """By a third or more with steps enough."""
    report = tuned[2]
    assert report.divergence < 0.95 * report.divergence_before
    assert report.original_perplexity < report.perplexity < report.perplexity_before


def test_the_program_gets_the_perplexity_that_is_reported(program, tuned, held_out):
    """The format's rounding of scales included: to the order of fp32 sums."""
    before, after, report = tuned
    found = perplexity(program, after, held_out, "--window", "256")
    assert found["predictions"] == report.measured_tokens // 256 * 255
    assert found["perplexity"] == pytest.approx(report.perplexity, rel=2e-5)
    found = perplexity(program, before, held_out, "--window", "256")
    assert found["perplexity"] == pytest.approx(report.perplexity_before, rel=2e-5)


def every_form(folder, rng):
    """Turns a quantized checkpoint's layers into all that docs/format.md allows, whatever `flute quantize` writes."""
    path = folder / "model.safetensors"
    tensors = dict(checkpoints.read_safetensors(path))
    for name in [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]:
        scale, table = tensors[f"{name}.weight_scale"].astype(np.float32), tensors[f"{name}.weight_codebook"]
        n = len(scale)
        if name.endswith(("q_proj", "gate_proj")):  # a table a row, in any order, fp32 scales that may be negative
            signs = np.where(np.arange(n) % 2, 1, -1).astype(np.float32)
            tensors[f"{name}.weight_codebook"] = signs[:, None] * table
            tensors[f"{name}.weight_scale"] = signs[:, None] * scale
        elif name.endswith(("k_proj", "down_proj")):  # bf16, with offsets
            tensors[f"{name}.weight_scale"] = checkpoints.to_bf16(scale)
            shift = 0.05 * rng.standard_normal(scale.shape).astype(np.float32) * scale
            tensors[f"{name}.weight_offset"] = checkpoints.to_bf16(shift)
        elif name.endswith("v_proj"):  # a scale that is 0, and a table in which a value stands twice
            scale[0] = 0
            table = table.copy()
            table[1] = table[0]
            tensors[f"{name}.weight_scale"] = scale.astype(np.float16)
            tensors[f"{name}.weight_codebook"] = table
    checkpoints.write_safetensors(path, tensors)


@needs_pytorch
def test_what_is_computed_again_is_the_same(small, tmp_path):
    for recompute in (False, True):
        tune(*small, tmp_path / str(recompute), **QUICK, recompute=recompute)
    stored = [(tmp_path / str(recompute) / "model.safetensors").read_bytes() for recompute in (False, True)]
    assert stored[0] == stored[1]


@needs_pytorch
@pytest.mark.parametrize("group_size", [64, -1])
def test_all_that_the_format_allows(program, tiny, group_size, held_out, tmp_path):
    """K = 96 has a short last group of 64."""
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    source, target = tmp_path / "q", tmp_path / "tuned"
    options = ("--bits", "3", "--group-size", str(group_size), "--layer-bits", "up_proj=5")
    program("quantize", tiny, source, *options, "--codebook", "int")
    every_form(source, np.random.default_rng(seed))
    quick = {**QUICK, "steps": 30, "learning_rate": 3e-3}
    report = tune(tiny, source, target, **quick, held_out=held_out, seed=seed)
    assert report.divergence < report.divergence_before
    found = perplexity(program, target, held_out, "--window", "64")
    assert found["perplexity"] == pytest.approx(report.perplexity, rel=2e-5)
    before, after = (checkpoints.read_checkpoint(folder) for folder in (source, target))
    for name, array in before.items():
        assert (array.dtype, array.shape) == (after[name].dtype, after[name].shape), name
        if parts_of(name) not in ("weight_scale", "weight_codebook"):
            assert np.array_equal(array, after[name]), name
    scale = "model.layers.0.self_attn.v_proj.weight_scale"
    assert not after[scale][0].any() and after[scale][1:].any()
    settings = json.loads((target / "config.json").read_text())["quantization_config"]
    assert settings["layers"]["model.layers.0.mlp.up_proj"] == {"bits": 5}


@needs_pytorch
@pytest.mark.parametrize("bits,group,per_row", [(2, 64, False), (3, 32, True), (4, 96, False)])
def test_gradients_are_those_of_the_dequantized_matrix(bits, group, per_row):
    """Autograd's through W = table[code] * scale, in float64; sums of fp32 differ by their rounding alone."""
    import torch
    from flute._tune_layer import Multiply, spread, sum_of_codes, sum_of_each_code

    seed = torch.seed()
    print(f"seed {seed}")
    n, k, tokens = 48, 160, 7
    codes = torch.randint(1 << bits, (n, k), dtype=torch.uint8)
    table = torch.randn(*(n,) * per_row, 1 << bits)
    scales, x = torch.rand(n, -(-k // group)) + 0.5, torch.randn(2, tokens, k)
    upstream = torch.randn(2, tokens, n)
    inputs = [value.clone().requires_grad_() for value in (x, scales, table)]
    y = Multiply.apply(*inputs, codes, group)
    y.backward(upstream)
    exact = [value.double().requires_grad_() for value in (x, scales, table)]
    values = exact[2].gather(1, codes.long()) if per_row else exact[2][codes.long()]
    expected = exact[0] @ (values * spread(exact[1], group, k)).T
    expected.backward(upstream.double())
    for found, right in zip([y, *(one.grad for one in inputs)], [expected, *(one.grad for one in exact)], strict=True):
        # A sum of at most n * k products of three factors, each below 6 here.
        assert (found - right).abs().max() <= 2**-24 * 6**3 * 64 * right.abs().max().clamp(1)
    weight = torch.randn(n, k)
    sums = sum_of_codes(weight, codes, 1 << bits)
    assert torch.allclose(sums, sum_of_each_code(weight, codes, 1 << bits), atol=2**-24 * k * 6)


@needs_pytorch
def test_the_same_call_writes_the_same_bytes(small, tmp_path):
    written = {}
    for name, seed in [("one", 5), ("again", 5), ("other", 6)]:
        tune(*small, tmp_path / name, **QUICK, seed=seed)
        written[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert written["one"] == written["again"] != written["other"]


@needs_pytorch
@pytest.mark.parametrize("rate", [None, 1e-3])
def test_the_first_step_is_as_long_as_the_learning_rate(program, tiny, rate, tmp_path):
    """Adam's is that long whatever the gradient; the default halves with each bit of the layer's own."""
    options = ("--bits", "4", "--layer-bits", "up_proj=2", "--scale-dtype", "fp32")
    program("quantize", tiny, tmp_path / "q", *options)
    tune(tiny, tmp_path / "q", tmp_path / "tuned", **{**QUICK, "steps": 1}, learning_rate=rate)
    before, after = (checkpoints.read_checkpoint(tmp_path / folder) for folder in ("q", "tuned"))
    for layer, q in flute.Checkpoint(tmp_path / "q").items():
        expected = rate or 0.016 / 2**q.bits
        one, other = (of[f"{layer}.weight_scale"].astype(np.float64) for of in (before, after))
        # exp and the product round to fp32: 2^-23 of a factor whose logarithm is no smaller than 1e-3.
        assert np.abs(np.log(other / one)).max() == pytest.approx(expected, rel=2e-3), layer
        one, other = (of[f"{layer}.weight_codebook"].astype(np.float64) for of in (before, after))
        assert np.abs(other - one).max() == pytest.approx(expected / 2 * np.abs(one).max(), rel=2e-3), layer


@needs_pytorch
def test_what_is_measured_is_not_learned_from():
    from flute._tune_model import held_out

    for count in (2, 5, 16, 1000):
        learned, measured = held_out(list(range(count)))
        assert sorted(learned + measured) == list(range(count))
        assert 1 <= len(measured) <= 8 and len(learned) >= len(measured)


@needs_pytorch
def test_progress_tells_all_stages(small, tmp_path):
    seen = []
    tune(*small, tmp_path / "tuned", **QUICK, progress=lambda *state: seen.append(state))
    assert [state[:3] for state in seen if state[0] == "tune"] == [("tune", step, 3) for step in (1, 2, 3)]
    assert {state[0] for state in seen} == {"before", "tune", "after"}
    assert all(state[3] > 0 for state in seen)


@needs_pytorch
def test_a_run_that_ends_early_leaves_nothing(small, tmp_path):
    def stop(stage, *_):
        if stage == "after":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(*small, tmp_path / "tuned", **QUICK, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q", "tiny"]


@needs_pytorch
def test_a_learning_rate_that_is_too_high_is_refused_or_warned_of(small, tmp_path):
    """Never a checkpoint with values that are not finite."""
    arguments = [*small, tmp_path / "tuned", "--text", CALIBRATION, "--window", 64, "--tokens", 64, "--steps", 20]
    done = run_module(*arguments, "--learning-rate", 1)
    assert (done.returncode, "lower the learning rate" in done.stderr) == (1, True) or "has grown" in done.stderr
    assert (tmp_path / "tuned").exists() == (done.returncode == 0)
    if done.returncode == 0:
        assert all(np.isfinite(q.dequantize()).all() for q in flute.Checkpoint(tmp_path / "tuned").values())


def run_module(*arguments, before=""):
    """`python -m flute.tune`, after some lines of Python."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "FLUTE_LIBRARY": str(flute.library_path)}
    code = f"import runpy, sys\n{before}\nrunpy.run_module('flute.tune', run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@needs_pytorch
def test_the_command_reports_what_the_function_returns(small, tmp_path):
    arguments = [*small, tmp_path / "tuned", "--text", CALIBRATION, "--window", 64, "--tokens", 128, "--steps", 3]
    done = run_module(*arguments, "--json", "--threads", 1)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["divergence"] < report["divergence_before"] and report["layers"] == 14
    assert report["target"] == str(tmp_path / "tuned") and report["tokens"] == 384
    done = run_module(*small, tmp_path / "again", *arguments[3:], "--threads", 1)
    assert f"divergence   {report['divergence_before']:.4f} -> {report['divergence']:.4f} nats" in done.stdout
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "tuned/model.safetensors").read_bytes()
    done = run_module(*arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert "expected a target that does not exist yet" in done.stderr


def test_without_pytorch_it_says_what_is_missing(small, tmp_path):
    for package in ("torch", "transformers"):
        hidden = f"sys.modules[{package!r}] = None"
        if package == "transformers":
            hidden += "\nimport types; sys.modules.setdefault('torch', types.ModuleType('torch'))"
        done = run_module(*small, tmp_path / "tuned", "--text", CALIBRATION, before=hidden)
        expected = f"flute: tune: expected PyTorch and transformers, found no {package}: pip install torch"
        assert done.returncode == 1 and done.stderr.startswith(expected), done.stderr
    assert "--text TEXT" in run_module("--help", before="sys.modules['torch'] = None").stdout


@needs_pytorch
def test_learned_normalfloat_changes_scales_and_rounds_to_them(program, held_out, tmp_path):
    program("quantize", checkpoints.LLAMA, tmp_path / "q", "--bits", "3")
    few = {"text": CALIBRATION, "steps": 20, "tokens": 256, "window": 256, "learning_rate": 5e-3}
    report = tune(checkpoints.LLAMA, tmp_path / "q", tmp_path / "nfl", method="nfl", held_out=held_out, **few)
    assert report.perplexity < 0.99 * report.perplexity_before
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("q", "nfl"))
    changed = {**before["quantization_config"], "method": "nfl", "tuned": True}
    assert after == {**before, "quantization_config": changed}
    weights = checkpoints.read_checkpoint(checkpoints.LLAMA)
    old = flute.Checkpoint(tmp_path / "q")
    for name, q in flute.Checkpoint(tmp_path / "nfl").items():
        assert np.array_equal(q.codebook, old[name].codebook), name
        weight = weights[f"{name}.weight"]
        if weight.dtype == np.uint16:  # bf16
            weight = (weight.astype(np.uint32) << 16).view(np.float32)
        scale = np.repeat(q.scales.astype(np.float32), q.group_size, 1)[:, : q.k]
        errors = np.abs(weight.astype(np.float32)[..., None] - scale[..., None] * q.codebook)
        found = np.take_along_axis(errors, q.codes().astype(np.int64)[..., None], 2)[..., 0]
        # Where two values are equally near, rounding of w / s may decide.
        assert (found <= errors.min(2) * (1 + 1e-5) + 1e-8).all(), name
    assert perplexity(program, tmp_path / "nfl", held_out, "--window", "256")["perplexity"] == pytest.approx(
        report.perplexity, rel=2e-5
    )


@needs_pytorch
def test_the_gradient_of_a_rounded_weights_scale_is_straight_through():
    import torch
    from flute._tune_layer import MultiplyRounded

    table = torch.tensor([-1.0, -0.25, 0.0, 0.5])
    weight = torch.tensor([[0.6, -0.3, 0.1, 2.0]])  # one group; the last is beyond the table's end
    scales = torch.tensor([[1.0]], requires_grad=True)
    y = MultiplyRounded.apply(torch.eye(4), scales, table, weight, 4)
    assert y.flatten().tolist() == [0.5, -0.25, 0.0, 0.5]
    (y.flatten() * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    # 0.6 is beyond, too.
    expected = 0.5 + 10 * (-0.25 + 0.3) + 100 * (0.0 - 0.1) + 1000 * 0.5
    assert scales.grad.item() == pytest.approx(expected, rel=1e-5)


def test_refusals(small, tmp_path):
    """Before anything is loaded, and so without PyTorch, too."""
    original, quantized = small
    good = {"original": original, "quantized": quantized, "target": tmp_path / "tuned", "text": CALIBRATION}
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for change, error, message in [
        ({"steps": 0}, ValueError, r"steps: expected 1\.\.1000000, found 0"),
        ({"tokens": 1000}, ValueError, "tokens: expected a multiple of the window, 512, found 1000"),
        ({"window": 1.5}, TypeError, "window: expected an integer, found float"),
        ({"learning_rate": -1}, ValueError, "learning_rate: expected a number above 0, at most 1, found -1"),
        ({"method": "awq"}, ValueError, "method: expected 'tables' or 'nfl', found 'awq'"),
        ({"dtype": "fp8"}, ValueError, "dtype: expected 'fp32' or 'bf16', found 'fp8'"),
        ({"original": tmp_path / "no"}, flute.Error, "no: expected the folder of a model, with config.json"),
        ({"quantized": original}, flute.Error, "expected a quantized checkpoint, found no quantized layer"),
        ({"original": quantized}, flute.Error, "expected the model before it was quantized, found quantized layers"),
        ({"original": checkpoints.LLAMA}, flute.Error, r"expected \w+ \[.*\] as in .*, found .* in .*docs-llama-small"),
        ({"target": original}, ValueError, "expected a target that does not exist yet"),
        ({"target": quantized / "tuned"}, ValueError, "expected a target outside of"),
        ({"text": tmp_path / "no"}, flute.Error, "No such file"),
        ({"text": tmp_path / "latin"}, flute.Error, "latin: expected UTF-8, found another encoding at byte 3"),
        ({"held_out": tmp_path / "latin"}, flute.Error, "latin: expected UTF-8"),
    ]:
        with pytest.raises(error, match=message) as raised:
            tune(**{**good, **change})
        assert str(raised.value).startswith("tune: ") and "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin", "q", "tiny"]


def test_another_original_is_refused(small, tmp_path):
    """One number is another somewhere in the embedding."""
    original, quantized = small
    tensors = dict(checkpoints.read_safetensors(original / "model.safetensors"))
    embedding = tensors["model.embed_tokens.weight"].copy()
    embedding[7, 7] ^= 1
    checkpoints.write_safetensors(original / "model.safetensors", {**tensors, "model.embed_tokens.weight": embedding})
    with pytest.raises(flute.Error, match="model.embed_tokens.weight: expected the values of .*q, found others in"):
        tune(original, quantized, tmp_path / "tuned", text=CALIBRATION)


@needs_pytorch
def test_refusals_of_what_is_loaded(small, tmp_path):
    original, quantized = small
    short = tmp_path / "short"
    short.write_text("Too short.")
    with pytest.raises(ValueError, match="short: expected at least 2 windows of 64 tokens, found 0"):
        tune(original, quantized, tmp_path / "tuned", **{**QUICK, "text": short})
    with pytest.raises(ValueError, match="short: expected at least 1 window of 64 tokens, found 0"):
        tune(original, quantized, tmp_path / "tuned", **QUICK, held_out=short)
    with pytest.raises(ValueError, match="device: expected one that PyTorch has, found 'nowhere'"):
        tune(original, quantized, tmp_path / "tuned", **QUICK, device="nowhere")
    tensors = dict(checkpoints.read_safetensors(original / "model.safetensors"))
    del tensors["model.layers.1.mlp.up_proj.weight"]
    checkpoints.write_safetensors(original / "model.safetensors", tensors)
    with pytest.raises(flute.Error, match="expected the tensor model.layers.1.mlp.up_proj.weight, .*, found none"):
        tune(original, quantized, tmp_path / "tuned", **QUICK)
    assert not (tmp_path / "tuned").exists()


def test_the_options_of_the_pages_exist():
    known = re.findall(r"--[a-z-]+", run_module("--help").stdout)
    page = (checkpoints.ROOT / "docs/tuning.md").read_text()
    options = set(re.findall(r"--[a-z][a-z-]*", page))
    of_quantize = {"--bits", "--group-size", "--calibration", "--method", "--codebook"}
    assert {"--text", "--held-out", "--steps"} <= options
    assert options - of_quantize - set(known) == set()
