"""flute.gemm on the CPU against float64."""

import os
import signal
import threading

import cases
import flute
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


def expect_product(y, x, q, bias, dtype):
    """y within what fp32 sums and one rounding to dtype allow, element by element."""
    weight = cases.dequantized(q, dtype).astype(np.float64)
    x = x.astype(np.float64)
    exact = x @ weight.T
    # |x| |W|, of which at most K + 4 fp32 operations each round: the sum, the product, bias, and scale and offset
    # applied to the sum of a group. Where they are, the weight itself has not been rounded to dtype, as it is here: two
    # roundings, of the product and of the sum with the offset.
    offset = 0 if q.offsets is None else np.abs(q.offsets.astype(np.float64)).max()
    terms = np.abs(x) @ (np.abs(weight) + 2 * offset).T
    if bias is not None:
        exact = exact + bias.astype(np.float64)
        terms = terms + np.abs(bias.astype(np.float64))
    unit = cases.UNIT_ROUNDOFF
    roundings = (q.k + 4) * unit["fp32"] + 2 * unit[dtype]
    bound = roundings * terms + unit[dtype] * np.abs(exact) + cases.SMALLEST[dtype]
    assert y.shape == exact.shape and y.dtype == cases.numpy_dtype(dtype)
    excess = np.abs(y.astype(np.float64) - exact) - 1.01 * bound
    assert (excess <= 0).all(), f"{q!r}, {dtype}: {excess.max():g} above the bound"


@given(
    cases.seeds,
    cases.tensors(),
    cases.dtypes,
    st.lists(st.integers(0, 5), max_size=3),
    st.booleans(),
    st.sampled_from(["C", "F", "padded", "reversed", "broadcast"]),
)
def test_products(seed, case, dtype, leading, with_bias, strides):
    q = case[0]
    rng = np.random.default_rng(seed)
    x = cases.to(rng.standard_normal((*leading, q.k)).astype(np.float32), dtype)
    if strides == "F":
        x = np.asfortranarray(x)
    elif strides == "padded":
        x = np.concatenate([x, x], axis=-1)[..., : q.k]
    elif strides == "reversed":
        x = x[..., ::-1]
    elif strides == "broadcast":
        x = np.broadcast_to(x, (2, *x.shape))
    bias = cases.to(rng.standard_normal(q.n).astype(np.float32), dtype) if with_bias else None
    expect_product(flute.gemm(x, q, bias), x, q, bias, dtype)


@given(cases.tensors(), cases.dtypes)
def test_the_identity_returns_the_matrix_bit_for_bit(case, dtype):
    q = case[0]
    product = flute.gemm(np.eye(q.k, dtype=cases.numpy_dtype(dtype)), q)
    np.testing.assert_array_equal(product.T, q.dequantize(dtype))


def example(n=96, k=256):
    rng = np.random.default_rng(5)
    q = flute.quantize(rng.standard_normal((n, k), np.float32))
    return q, rng.standard_normal((17, k), np.float32)


def test_zero_tokens_and_one_without_a_dimension():
    q, x = example()
    assert flute.gemm(x[:0], q).shape == (0, 96)
    assert flute.gemm(np.empty((3, 0, 256), np.float16), q).shape == (3, 0, 96)
    one = flute.gemm(x[0], q)
    assert one.shape == (96,)
    np.testing.assert_array_equal(one, flute.gemm(x[:1], q)[0])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::3],
        lambda x: x[::-1],
        lambda x: np.broadcast_to(x[0], x.shape),
        lambda x: np.lib.stride_tricks.sliding_window_view(np.r_[x[0], x[1]], x.shape[1])[:20],  # rows overlap
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: np.swapaxes(np.stack([x, x + 1]), 0, 1),
    ],
    ids=["every third row", "rows reversed", "one row again", "overlapping rows", "every second column", "swapped"],
)
def test_strides_of_rows(view):
    q, x = example()
    np.testing.assert_array_equal(flute.gemm(view(x), q), flute.gemm(view(x).copy(), q))


def test_unaligned_activations():
    q, x = example()
    raw = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:]
    unaligned = raw.view(np.float32).reshape(x.shape)
    assert not unaligned.flags.aligned
    np.testing.assert_array_equal(flute.gemm(unaligned, q), flute.gemm(x, q))


def test_the_same_bits_for_any_number_of_threads():
    q, x = example(256, 1024)
    expected = flute.gemm(x, q)
    before = flute.get_threads()
    try:
        for count in (1, 2, 3):
            flute.set_threads(count)
            np.testing.assert_array_equal(flute.gemm(x, q), expected)
    finally:
        flute.set_threads(before)


def test_several_python_threads_at_once():
    """The first multiply prepares the matrix; meanwhile another one replaces the pool."""
    q, x = example()
    expected = flute.gemm(x, flute.QuantizedTensor.from_packed(q.packed, q.codebook, q.scales, bits=4, group_size=64))
    start, wrong = threading.Barrier(5), []

    def work():
        start.wait()
        for _ in range(20):
            if not np.array_equal(flute.gemm(x, q), expected):
                wrong.append(threading.get_ident())

    before = flute.get_threads()
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.wait()
    for count in (1, 2, 3, before):
        flute.set_threads(count)
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_multiplies():
    """It has none of its parent's threads; waiting for one would hang a data loader for ever."""
    q, x = example(256, 1024)
    before = flute.get_threads()
    flute.set_threads(2)
    try:
        expected = flute.gemm(x, q)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if np.array_equal(flute.gemm(x, q), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        flute.set_threads(before)
