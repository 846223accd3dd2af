"""flute.Checkpoint reads what `flute quantize` writes."""

import json
import shutil
import sys

import cases
import checkpoints
import flute as package
import numpy as np
import pytest

format_reader = cases.format_reader


def test_every_layer_is_that_of_the_format(quantized):
    checkpoint = package.Checkpoint(quantized)
    expected = dict(format_reader.dequantized(quantized))
    assert {f"{name}.weight" for name in checkpoint} == set(expected) and len(checkpoint) == 28
    for name, q in checkpoint.items():
        assert (q.bits, q.group_size, q.scale_dtype) == (4, 64, "fp16")
        np.testing.assert_array_equal(q.dequantize(), expected[f"{name}.weight"])
    assert "28 quantized layers" in repr(checkpoint)


def test_a_layer_is_what_quantize_makes_of_its_weights(quantized):
    """The program and the package write the same bits."""
    name = "model.layers.1.mlp.up_proj"
    for shard in checkpoints.LLAMA.glob("*.safetensors"):
        weights = read_bf16(shard)
        if f"{name}.weight" in weights:
            break
    # bf16 values are fp32 values, too
    q = package.quantize(weights[f"{name}.weight"])
    layer = package.Checkpoint(quantized)[name]
    for part, array in q.tensors().items():
        np.testing.assert_array_equal(layer.tensors()[part], array)


def read_bf16(path):
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8:end]).items():
        if name != "__metadata__":
            begin, stop = (end + offset for offset in entry["data_offsets"])
            bits = np.frombuffer(raw[begin:stop], np.uint16).reshape(entry["shape"])
            tensors[name] = checkpoints.from_bf16(bits)
    return tensors


def test_multiplies_after_the_checkpoint_is_gone(quantized):
    checkpoint = package.Checkpoint(str(quantized))
    q = checkpoint["model.layers.0.mlp.down_proj"]
    del checkpoint
    y = package.gemm(np.eye(q.k, dtype=np.float32), q)
    np.testing.assert_array_equal(y.T, cases.dequantized(q))


def test_an_unquantized_checkpoint_has_no_layers():
    checkpoint = package.Checkpoint(checkpoints.LLAMA)
    assert len(checkpoint) == 0 and list(checkpoint) == []


def test_a_layer_that_is_not_there(quantized):
    checkpoint = package.Checkpoint(quantized)
    assert "lm_head" not in checkpoint
    with pytest.raises(KeyError, match="lm_head.*28 quantized layers"):
        checkpoint["lm_head"]
    assert checkpoint.get(None) is None


def test_bf16_scales_do_not_need_ml_dtypes(flute, tmp_path, monkeypatch):
    """Only looking at them does."""
    flute("quantize", checkpoints.LLAMA, tmp_path / "q", "--scale-dtype", "bf16")
    expected = dict(format_reader.dequantized(tmp_path / "q"))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    name, q = next(iter(package.Checkpoint(tmp_path / "q").items()))
    assert q.scale_dtype == "bf16"
    np.testing.assert_array_equal(q.dequantize(), expected[f"{name}.weight"])
    np.testing.assert_array_equal(package.gemm(np.eye(q.k, dtype=np.float32), q).T, expected[f"{name}.weight"])
    for use in (lambda: q.scales, lambda: q.tensors(), lambda: q.dequantize("bf16")):
        with pytest.raises(package.Error, match="ml_dtypes") as raised:
            use()
        assert raised.value.kind == "unsupported"


def broken(quantized, tmp_path, change):
    folder = tmp_path / "broken"
    shutil.copytree(quantized, folder)
    config = json.loads((folder / "config.json").read_text())
    change(folder, config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def truncate(folder, _):
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])


@pytest.mark.parametrize(
    "change,kind,mentions",
    [
        (lambda _, settings: settings.update(format_version=2), "unsupported", "format_version: expected 1, found 2"),
        (lambda _, settings: settings.update(group_size=48), "format", "group_size.*48"),
        (truncate, "format", "safetensors"),
    ],
)
def test_broken_checkpoints(quantized, tmp_path, change, kind, mentions):
    with pytest.raises(package.Error, match=mentions) as raised:
        package.Checkpoint(broken(quantized, tmp_path, change))
    assert raised.value.kind == kind and str(raised.value).startswith("Checkpoint: ")


def test_no_checkpoint(tmp_path):
    with pytest.raises(package.Error, match="nowhere") as raised:
        package.Checkpoint(tmp_path / "nowhere")
    assert raised.value.kind == "io"
    for path, error in ((3, TypeError), (b"folder", TypeError), ("fol\0der", ValueError)):
        with pytest.raises(error, match="^Checkpoint: path: expected"):
            package.Checkpoint(path)
