"""Packing, QuantizedTensor: what goes in comes out, and dequantizes to what docs/format.md says."""

import copy
import json
import pickle

import cases
import flute
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from test_format import pack

format_reader = cases.format_reader


@given(cases.seeds, st.integers(1, 8), st.integers(1, 5), cases.columns)
def test_packing_is_that_of_the_format(seed, bits, n, k):
    codes = np.random.default_rng(seed).integers(1 << bits, size=(n, k), dtype=np.uint8)
    words = flute.pack_codes(codes, bits)
    assert words.dtype == np.int32
    np.testing.assert_array_equal(words.view(np.uint32), pack(codes, bits).reshape(words.shape))
    np.testing.assert_array_equal(flute.unpack_codes(words, bits), codes)
    np.testing.assert_array_equal(flute.unpack_codes(words.view(np.uint32)[..., None, :], bits), codes[..., None, :])
    np.testing.assert_array_equal(flute.pack_codes(np.asfortranarray(codes), bits), words)


@given(cases.tensors(), cases.dtypes)
def test_from_codes_keeps_everything_and_dequantizes_as_the_format_says(case, dtype):
    q, codes, codebook, scales, offsets = case
    assert q.shape == codes.shape and q.scale_dtype in repr(q)
    np.testing.assert_array_equal(q.codes(), codes)
    np.testing.assert_array_equal(q.codebook, codebook)
    np.testing.assert_array_equal(q.scales, scales)
    assert (q.offsets is None) == (offsets is None)
    if offsets is not None:
        np.testing.assert_array_equal(q.offsets, offsets)
    assert q.nbytes == sum(array.nbytes for array in q.tensors().values())
    weight = q.dequantize(dtype)
    assert weight.dtype == cases.numpy_dtype(dtype)
    np.testing.assert_array_equal(weight.astype(np.float32), cases.dequantized(q, dtype))


@given(cases.tensors())
def test_copies_and_pickles_are_the_same(case):
    q = case[0]
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert repr(other) == repr(q)
        np.testing.assert_array_equal(other.dequantize(), q.dequantize())
        for name, array in q.tensors("layer").items():
            np.testing.assert_array_equal(other.tensors("layer")[name], array)
            assert not other.tensors("layer")[name].flags.writeable


@pytest.mark.parametrize("k", [32, 64, 96, 256, 480, 1024])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256, -1])
def test_the_group_size_is_found_from_the_scales(k, group_size):
    rng = np.random.default_rng(0)
    codes, table = rng.integers(16, size=(3, k)), rng.standard_normal(16)
    scales = rng.uniform(1, 2, (3, cases.groups(k, group_size))).astype(np.float32)
    given_size = flute.QuantizedTensor.from_codes(codes, table, scales, group_size=group_size)
    found = flute.QuantizedTensor.from_codes(codes, table, scales)
    assert found.group_size == (-1 if scales.shape[1] == 1 else group_size)
    np.testing.assert_array_equal(found.dequantize(), given_size.dequantize())


def test_arrays_cannot_be_changed_behind_the_prepared_matrix():
    scales = np.ones((2, 1), np.float32)
    q = flute.QuantizedTensor.from_codes(np.zeros((2, 32), np.uint8), [1.0, 2.0], scales)
    quantized = flute.quantize(np.ones((2, 32), np.float32))
    for array in (*q.tensors().values(), *quantized.tensors().values()):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 3
    scales[...] = 5  # it was copied
    assert q.dequantize().max() == 1


def test_arrays_outlive_their_tensor():
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((64, 256), np.float32)
    expected = flute.quantize(weight).packed.copy()
    packed = flute.quantize(weight).packed
    for _ in range(20):  # would reuse the memory, had it been freed
        flute.quantize(rng.standard_normal((64, 256), np.float32))
    np.testing.assert_array_equal(packed, expected)


def test_tensors_are_a_checkpoint(tmp_path):
    """Saved under a layer's name, they are what flute and docs/format_reader.py read."""
    rng = np.random.default_rng(2)
    q = flute.quantize(rng.standard_normal((40, 96), np.float32), 3, group_size=64)
    per_row = flute.QuantizedTensor.from_codes(
        rng.integers(8, size=(5, 64)),
        rng.standard_normal((5, 8)),
        rng.uniform(1, 2, (5, 1)).astype(np.float16),
        group_size=64,
        offsets=rng.standard_normal((5, 1)).astype(np.float16),
    )
    save_file({**q.tensors("a.proj"), **per_row.tensors("b.proj")}, tmp_path / "model.safetensors")
    settings = {"quant_method": "flute", "format_version": 1, "bits": 3, "group_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "some", "quantization_config": settings}))
    expected = dict(format_reader.dequantized(tmp_path))
    checkpoint = flute.Checkpoint(tmp_path)
    assert sorted(checkpoint) == ["a.proj", "b.proj"]
    for name, tensor in {"a.proj": q, "b.proj": per_row}.items():
        np.testing.assert_array_equal(checkpoint[name].dequantize(), tensor.dequantize())
        np.testing.assert_array_equal(checkpoint[name].dequantize(), expected[f"{name}.weight"])
