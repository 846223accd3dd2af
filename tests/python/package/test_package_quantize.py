"""flute.quantize against a numpy implementation of docs/format.md, bit for bit."""

import json

import cases
import flute
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_format import NF4, quantize, random_matrix, random_table

STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@given(
    cases.seeds,
    cases.rows,
    cases.columns,
    st.integers(2, 8),
    st.sampled_from(["nf", "int", "table"]),
    cases.group_sizes,
    cases.dtypes,
    cases.dtypes,
)
def test_codes_and_scales(seed, n, k, bits, kind, group_size, scale_dtype, dtype):
    rng = np.random.default_rng(seed)
    weight = random_matrix(rng, n, k, STORED[dtype])
    table = random_table(rng, bits) if kind == "table" else flute.codebook(kind, bits)
    magnitude = (1 << bits - 1) - 1 if kind == "int" else np.abs(table).max()
    assume(scale_dtype != "fp16" or np.abs(weight).max() / magnitude <= 65504)  # beyond it is refused, see below
    q = flute.quantize(
        cases.to(weight, dtype), bits, table if kind == "table" else kind, group_size, scale_dtype=scale_dtype
    )
    codes, scales = quantize(weight, table, magnitude, group_size, scale_dtype)
    assert (q.shape, q.bits, q.group_size, q.scale_dtype) == ((n, k), bits, group_size, scale_dtype)
    np.testing.assert_array_equal(q.codes(), codes)
    np.testing.assert_array_equal(q.scales.astype(np.float32), scales)
    np.testing.assert_array_equal(q.codebook, table)


def weights(seed=0, shape=(24, 192)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same(left, right):
    assert repr(left) == repr(right)
    for name, array in left.tensors().items():
        np.testing.assert_array_equal(array, right.tensors()[name])


def test_defaults_are_those_of_the_program():
    q = flute.quantize(weights())
    assert (q.bits, q.group_size, q.scale_dtype) == (4, 64, "fp16")
    np.testing.assert_array_equal(q.codebook, np.array(NF4, np.float32))


def test_strides_do_not_matter():
    w = weights()
    for view in (np.asfortranarray(w), np.repeat(w, 2, axis=0)[::2], w[::-1].copy()[::-1]):
        same(flute.quantize(view), flute.quantize(w))


def test_a_table_a_row():
    w = weights()
    tables = np.random.default_rng(1).standard_normal((len(w), 8)).astype(np.float32)
    # One magnitude for all rows, so that one table at a time does the same.
    q = flute.quantize(w, codebook=tables, max_magnitude=2.0)
    assert q.bits == 3 and q.codebook.shape == (24, 8)
    for row in range(len(w)):
        single = flute.quantize(w[row : row + 1], codebook=tables[row], max_magnitude=2.0)
        np.testing.assert_array_equal(q.codes()[row : row + 1], single.codes())
        np.testing.assert_array_equal(q.scales[row : row + 1], single.scales)


def test_clip_and_max_magnitude_set_the_scale():
    w = weights()
    absmax = np.abs(w.reshape(24, 3, 64)).max(axis=2)
    q = flute.quantize(w, clip=0.75, max_magnitude=4, scale_dtype=np.float32)
    np.testing.assert_array_equal(q.scales, absmax * np.float32(0.75) / np.float32(4))


def test_kmeans_is_the_fitted_table_and_beats_normal_float():
    w = weights(3, (64, 256))
    fitted = flute.fit_codebook(w, 3, 64)
    assert (np.diff(fitted) > 0).all() and np.abs(fitted).max() == 1
    kmeans = flute.quantize(w, 3, "kmeans")
    same(kmeans, flute.quantize(w, 3, fitted))
    assert np.square(kmeans.dequantize() - w).sum() < np.square(flute.quantize(w, 3).dequantize() - w).sum()


@pytest.mark.parametrize("bits,codebook", [(2, "nf"), (3, "int"), (3, "kmeans"), (4, np.linspace(-1, 1, 16))])
def test_mse_learns_a_table_that_leaves_less_error(bits, codebook):
    w = weights(5, (64, 256))
    start = flute.quantize(w, bits, codebook, 32)
    q = flute.quantize(w, bits, codebook, 32, method="mse")
    assert repr(q) == repr(start) and (q.codebook != start.codebook).any()
    # What the search and the table have to take for these weights is a tenth of the error and more.
    assert np.square(q.dequantize() - w).sum() < 0.95 * np.square(start.dequantize() - w).sum()


def test_threads_do_not_change_results():
    w = weights(4, (600, 512))  # several blocks of rows
    before = flute.get_threads()
    try:
        flute.set_threads(1)
        one, table, learned = flute.quantize(w), flute.fit_codebook(w), flute.quantize(w, method="mse")
        assert flute.get_threads() == 1
        flute.set_threads(3)
        assert flute.get_threads() == 3
        same(flute.quantize(w), one)
        np.testing.assert_array_equal(flute.fit_codebook(w), table)
        same(flute.quantize(w, method="mse"), learned)
    finally:
        flute.set_threads(before)


def test_codebook_files(tmp_path):
    file = tmp_path / "täble.json"
    file.write_text(json.dumps({"bits": 2, "values": [-1, -0.25, 0.5, 1]}))
    table = flute.read_codebook(file)
    np.testing.assert_array_equal(table, np.array([-1, -0.25, 0.5, 1], np.float32))
    np.testing.assert_array_equal(flute.quantize(weights(), codebook=table).codebook, table)
    file.write_text(json.dumps({"bits": 2, "values": [-1, 1]}))
    with pytest.raises(flute.Error, match="4 .*2") as raised:
        flute.read_codebook(str(file))
    assert raised.value.kind == "format"
    with pytest.raises(flute.Error, match="missing.json") as raised:
        flute.read_codebook(tmp_path / "missing.json")
    assert raised.value.kind == "io"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(value):
    w = weights()
    w[5, 77] = value
    with pytest.raises(ValueError, match="^quantize: row 5, column 77: expected a finite weight"):
        flute.quantize(w)
    with pytest.raises(ValueError, match="^fit_codebook: .*finite"):
        flute.fit_codebook(w)


def test_a_scale_that_overflows_is_named():
    w = weights()
    w[7, 130] = 1e6
    with pytest.raises(ValueError, match="row 7, group 2: .*overflows fp16"):
        flute.quantize(w)
    assert np.isfinite(flute.quantize(w, scale_dtype="fp32").dequantize()).all()
