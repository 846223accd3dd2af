"""Random matrices for the tests of the package, and what numpy makes of them."""

import sys

import checkpoints
import flute
import numpy as np
from hypothesis import strategies as st

sys.path.insert(0, str(checkpoints.ROOT / "docs"))
import format_reader  # noqa: E402

ml_dtypes = None
try:
    import ml_dtypes
except ImportError:
    pass

DTYPES = ["fp32", "fp16"] + ["bf16"] * (ml_dtypes is not None)
UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
SMALLEST = {"fp32": 2.0**-149, "fp16": 2.0**-24, "bf16": 2.0**-133}

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)
group_sizes = st.sampled_from([32, 64, 128, 256, -1])
rows = st.integers(1, 40)
columns = st.integers(1, 20).map(lambda blocks: 32 * blocks)  # mostly with a short last group


def numpy_dtype(name):
    return {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes and ml_dtypes.bfloat16}[name]


def to(values, dtype):
    """float32 values in that dtype, rounded to nearest even."""
    return format_reader.round_to(values, dtype).astype(numpy_dtype(dtype))


def groups(k, group_size):
    return 1 if group_size < 0 else -(-k // group_size)


@st.composite
def tensors(draw, offsets=True):
    """A QuantizedTensor of random codes, table and scales, and the same as plain arrays."""
    rng = np.random.default_rng(draw(seeds))
    n, k, bits, group_size = draw(rows), draw(columns), draw(st.integers(1, 8)), draw(group_sizes)
    per_row, dtype = draw(st.booleans()), draw(dtypes)
    codes = rng.integers(1 << bits, size=(n, k)).astype(draw(st.sampled_from([np.uint8, np.int64, np.int16])))
    codebook = rng.standard_normal((n, 1 << bits) if per_row else 1 << bits).astype(np.float32)
    scales = to(rng.uniform(0.01, 2, (n, groups(k, group_size))).astype(np.float32), dtype)
    shift = to(rng.standard_normal(scales.shape).astype(np.float32), dtype) if offsets and draw(st.booleans()) else None
    q = flute.QuantizedTensor.from_codes(codes, codebook, scales, group_size=group_size, offsets=shift)
    return q, codes, codebook, scales, shift


def dequantized(q, dtype="fp32"):
    """The matrix of a QuantizedTensor as docs/format.md has it, in float32."""
    offsets = None if q.offsets is None else q.offsets.astype(np.float32)
    scales = q.scales.astype(np.float32)
    return format_reader.dequantize(q.packed, scales, q.codebook, q.bits, q.group_size, offsets, dtype)
