"""What a caller gets wrong: an exception that names the argument, what was expected and what was found."""

import flute
import numpy as np
import pytest

W = np.ones((4, 64), np.float32)
X = np.ones((2, 64), np.float32)
Q = flute.quantize(W)
CODES = np.zeros((4, 64), np.uint8)
SCALES = np.ones((4, 2), np.float16)
WORDS = flute.pack_codes(CODES, 4)
TABLE = np.arange(16.0)
from_codes, from_packed = flute.QuantizedTensor.from_codes, flute.QuantizedTensor.from_packed


def with_value(array, index, value):
    array = array.copy()
    array[index] = value
    return array


BAD = [
    (lambda: flute.quantize([[1.0]]), TypeError, "quantize: weight: expected a numpy array, found list"),
    (lambda: flute.quantize(W.astype(float)), TypeError, "quantize: weight: expected float32.*found float64"),
    (lambda: flute.quantize(W.astype(">f4")), TypeError, "quantize: weight: expected float32.*found >f4"),
    (lambda: flute.quantize(W[0]), ValueError, r"quantize: weight: expected shape \[N, K\].*found \[64\]"),
    (lambda: flute.quantize(W[:, :33]), ValueError, r"quantize: weight: .*multiple of 32, found \[4, 33\]"),
    (lambda: flute.quantize(W[:, :0]), ValueError, r"quantize: weight: .*multiple of 32, found \[4, 0\]"),
    (lambda: flute.quantize(W, bits=9), ValueError, "quantize: bits: expected 1..8, found 9"),
    (lambda: flute.quantize(W, bits=2**32 + 4), ValueError, "quantize: bits: expected 1..8, found 4294967300"),
    (lambda: flute.quantize(W, bits=4.0), TypeError, "quantize: bits: expected an integer, found float"),
    (lambda: flute.quantize(W, codebook="nf5"), ValueError, "quantize: .*nf5"),
    (lambda: flute.quantize(W, 4, "n\0f"), ValueError, "quantize: "),
    (lambda: flute.quantize(W, 1), ValueError, r"quantize: nf codebook: expected bits 2..8, found 1"),
    (lambda: flute.quantize(W, codebook=TABLE[:15]), ValueError, r"quantize: codebook: expected shape.*found \[15\]"),
    (lambda: flute.quantize(W, 3, TABLE), ValueError, "quantize: codebook: expected 8 values for 3 bits, found 16"),
    (lambda: flute.quantize(W, codebook=[TABLE] * 3), ValueError, r"quantize: codebook: expected \[4, 16\], found \[3"),
    (lambda: flute.quantize(W, codebook=TABLE * np.nan), ValueError, r"quantize: codebook: .*finite.*nan at \[0\]"),
    (lambda: flute.quantize(W, codebook=[1e39, 0]), ValueError, r"quantize: codebook: .*finite.*inf at \[0\]"),
    (lambda: flute.quantize(W, codebook=[0.0, 0.0]), ValueError, "quantize: .*largest magnitude"),
    (lambda: flute.quantize(W, codebook=["a", "b"]), TypeError, "quantize: codebook: expected real numbers"),
    (lambda: flute.quantize(W, codebook=None), TypeError, "quantize: codebook: expected real numbers, found object"),
    (lambda: flute.quantize(W, group_size=48), ValueError, "quantize: group_size: expected 32, 64.*found 48"),
    (lambda: flute.quantize(W, group_size=None), TypeError, "quantize: group_size: expected an integer"),
    (lambda: flute.quantize(W, scale_dtype="int8"), TypeError, "quantize: scale_dtype: expected 'fp32'.*'int8'"),
    (lambda: flute.quantize(W, scale_dtype=None), TypeError, "quantize: scale_dtype: expected 'fp32'.*None"),
    (lambda: flute.quantize(W, clip=0), ValueError, "quantize: clip: expected a number above 0, at most 1, found 0"),
    (lambda: flute.quantize(W, clip=1.5), ValueError, "quantize: clip: .*found 1.5"),
    (lambda: flute.quantize(W, clip=1e-60), ValueError, "quantize: clip: .*found 1e-60"),
    (lambda: flute.quantize(W, clip=np.nan), ValueError, "quantize: clip: .*found nan"),
    (lambda: flute.quantize(W, clip="x"), TypeError, "quantize: clip: expected a number, found 'x'"),
    (lambda: flute.quantize(W, max_magnitude=-1), ValueError, "quantize: max_magnitude: .*found -1"),
    (lambda: flute.quantize(W, max_magnitude=1e39), ValueError, "quantize: max_magnitude: .*found 1e\\+39"),
    (lambda: flute.quantize(W, method="ldlq"), ValueError, "quantize: method: expected 'rtn' or 'mse', found 'ldlq'"),
    (lambda: flute.quantize(W, method=None), ValueError, "quantize: method: expected 'rtn' or 'mse', found None"),
    (lambda: flute.quantize(W, method="mse", clip=0.9), ValueError, "quantize: clip: expected none with 'mse'"),
    (lambda: flute.quantize(W, method="mse", max_magnitude=2), ValueError, "quantize: max_magnitude: expected none"),
    (lambda: flute.quantize(W, None, [TABLE] * 4, method="mse"), ValueError, "quantize: codebook: expected one table"),
    (lambda: flute.fit_codebook(W, 0), ValueError, "fit_codebook: bits: expected 1..8, found 0"),
    (lambda: flute.fit_codebook(W, 4, 7), ValueError, "fit_codebook: group_size: .*found 7"),
    (lambda: flute.codebook("nf", 1), ValueError, "codebook: .*bits 2..8, found 1"),
    (lambda: flute.codebook("e2m1", 5), ValueError, "codebook: .*5 bits, found .e2m1."),
    (lambda: flute.codebook(4), TypeError, "codebook: .*name.*found int"),
    (lambda: flute.pack_codes(CODES.astype(float), 4), TypeError, "pack_codes: codes: .*integers, found float64"),
    (lambda: flute.pack_codes(CODES + 16, 4), ValueError, "pack_codes: codes: expected 0..15 for 4 bits, found 16"),
    (lambda: flute.pack_codes(CODES - 1, 4), ValueError, "pack_codes: codes: expected 0..15.*found 255"),
    (lambda: flute.pack_codes(-CODES.astype(int) - 1, 4), ValueError, "pack_codes: codes: expected 0..15.*found -1"),
    (lambda: flute.pack_codes(CODES[:, :31], 4), ValueError, r"pack_codes: codes: .*multiple of 32, found \[4, 31\]"),
    (lambda: flute.unpack_codes(CODES, 4), TypeError, "unpack_codes: words: expected.*int32 or uint32, found uint8"),
    (lambda: flute.unpack_codes(WORDS, 3), ValueError, r"unpack_codes: words: expected shape.*found \[4, 8\]"),
    (lambda: from_codes([[0]], TABLE, SCALES), TypeError, "from_codes: codes: expected a numpy array of integers"),
    (lambda: from_codes(CODES + 16, TABLE, SCALES), ValueError, "from_codes: codes: expected 0..15.*found 16"),
    (lambda: from_codes(CODES[0], TABLE, SCALES), ValueError, r"from_codes: codes: expected shape \[N, K\]"),
    (lambda: from_codes(CODES, TABLE[None], SCALES), ValueError, r"from_codes: codebook: .*\[4, 16\], found \[1, 16\]"),
    (lambda: from_codes(CODES, TABLE, SCALES.astype(float)), TypeError, "from_codes: scales: .*found float64"),
    (
        lambda: from_codes(CODES, TABLE, SCALES[:3]),
        ValueError,
        r"from_codes: scales: expected shape \[4, 2\].*\[3, 2\]",
    ),
    (lambda: from_codes(CODES, TABLE, SCALES[:, 0]), ValueError, r"from_codes: scales: .*\[N, groups\], found \[4\]"),
    (
        lambda: from_codes(CODES, TABLE, np.ones((4, 3), np.float16)),
        ValueError,
        r"from_codes: scales: expected a column for each group.*K = 64, found \[4, 3\]",
    ),
    (
        lambda: from_codes(CODES, TABLE, SCALES, group_size=64),
        ValueError,
        r"from_codes: scales: expected shape \[4, 1\] for group size 64, found \[4, 2\]",
    ),
    (
        lambda: from_codes(CODES, TABLE, with_value(SCALES, (2, 1), np.inf)),
        ValueError,
        "from_codes: scales: expected finite values, found another at row 2, group 1",
    ),
    (
        lambda: from_codes(CODES, TABLE, SCALES, offsets=SCALES.astype(np.float32)),
        TypeError,
        "from_codes: offsets: expected fp16 as the scales are, found fp32",
    ),
    (
        lambda: from_codes(CODES, TABLE, SCALES, offsets=SCALES * np.float16(np.nan)),
        ValueError,
        "from_codes: offsets: expected finite values",
    ),
    (lambda: from_packed(CODES, TABLE, SCALES, bits=4), TypeError, "from_packed: packed: .*found uint8"),
    (lambda: from_packed(WORDS, TABLE, SCALES, bits=3), ValueError, r"from_packed: packed: .*\* 3 / 32\].*\[4, 8\]"),
    (lambda: from_packed(WORDS, TABLE, SCALES, bits=8), ValueError, r"from_packed: codebook: .*\[256\].*found \[16\]"),
    (lambda: flute.QuantizedTensor(), TypeError, "QuantizedTensor: made by"),
    (lambda: Q.dequantize("fp8"), TypeError, "dequantize: dtype: expected 'fp32'.*'fp8'"),
    (lambda: Q.dequantize(np.int32), TypeError, "dequantize: dtype: expected 'fp32'"),
    (lambda: flute.gemm(X, W), TypeError, "gemm: q: expected a QuantizedTensor, found ndarray"),
    (lambda: flute.gemm(X.tolist(), Q), TypeError, "gemm: x: expected a numpy array, found list"),
    (lambda: flute.gemm(X.astype(float), Q), TypeError, "gemm: x: expected float32.*found float64"),
    (lambda: flute.gemm(X[:, :32], Q), ValueError, r"gemm: x: expected shape \[..., 64\], found \[2, 32\]"),
    (lambda: flute.gemm(np.float32(1) * np.ones(()), Q), TypeError, "gemm: x: "),
    (lambda: flute.gemm(np.ones((), np.float32), Q), ValueError, r"gemm: x: expected shape \[..., 64\], found \[\]"),
    (lambda: flute.gemm(X, Q, np.ones(3, np.float32)), ValueError, r"gemm: bias: expected shape \[4\], found \[3\]"),
    (lambda: flute.gemm(X, Q, np.ones(4, np.float16)), TypeError, "gemm: bias: expected fp32 as x is, found fp16"),
    (lambda: flute.set_threads(-1), ValueError, "set_threads: count: expected 0..4096, found -1"),
    (lambda: flute.set_threads("2"), TypeError, "set_threads: count: expected an integer, found str"),
]


@pytest.mark.parametrize("call,error,message", BAD, ids=[f"{i}-{case[2][:40]}" for i, case in enumerate(BAD)])
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=f"^{message}") as raised:
        call()
    assert "\n" not in str(raised.value)
    assert type(raised.value) is error
