"""Weights to codes, and where tables come from."""

import ctypes
import os
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _threads
from ._arrays import (
    Array,
    DTypeName,
    Element,
    checked_group_size,
    contiguous,
    encoded_path,
    float_array,
    integer,
    parse_dtype,
    positive_float32,
)
from ._library import Handle, PackedView, QuantizeArgs, check, lib
from ._tensor import QuantizedTensor, _table

_METHODS = {"rtn": lib.flute_quantize_rtn, "mse": lib.flute_quantize_mse}


def codebook(name: str, bits: SupportsIndex = 4) -> Array:
    """The named table: float32 [2^bits].

    name: "nf" (NormalFloat, bits 2..8), "int" (symmetric integers, 2..8), "fp" (small floats, 3..8) or one of its
    variants "e1m1", "e2m1", "e2m2", "e2m3", "e3m2", "e3m3", "e4m3", each at its own width.
    Raises TypeError and ValueError.
    """
    return _named(name, integer(bits, "codebook: bits", 1, 8), "codebook")[0]


def read_codebook(path: str | os.PathLike[str]) -> Array:
    """The table of a codebook file, {"bits": b, "values": [2^b numbers]}: float32 [2^b].

    Raises TypeError, and flute.Error of kind "io" or "format".
    """
    bits = ctypes.c_int32()
    values = np.empty(256, np.float32)
    name = encoded_path(path, "read_codebook: path")
    check(lib.flute_codebook_read(name, bits, values.ctypes.data, values.size), "read_codebook")
    return values[: 1 << bits.value].copy()


def fit_codebook(weight: Array, bits: SupportsIndex = 4, group_size: SupportsIndex = 64) -> Array:
    """A table fitted to a matrix: the k-means of its weights, each divided by its group's absmax. Of all tables it
    leaves round-to-nearest the least squared error in this matrix.

    weight: float32, float16 or bfloat16 [N, K], finite, K a positive multiple of 32; any strides.
    bits: 1..8. group_size: 32, 64, 128, 256 or -1, as in `quantize`.
    Returns float32 [2^bits], ascending. Raises TypeError and ValueError.
    """
    bits = integer(bits, "fit_codebook: bits", 1, 8)
    group_size = checked_group_size(group_size, "fit_codebook: group_size")
    return _fit(*_weight(weight, "fit_codebook"), bits, group_size, "fit_codebook")


def quantize(
    weight: Array,
    bits: SupportsIndex | None = None,
    codebook: str | ArrayLike = "nf",
    group_size: SupportsIndex = 64,
    *,
    scale_dtype: DTypeLike | DTypeName = "fp16",
    clip: float = 1.0,
    max_magnitude: float | None = None,
    method: str = "rtn",
) -> QuantizedTensor:
    """Quantizes a matrix, rounding to the nearest value: what `flute quantize` does to each layer, bit for bit.

    weight: float32, float16 or bfloat16 [N, K], finite, K a positive multiple of 32; any strides.
    bits: 1..8; None: 4, or what the length of the table given says.
    codebook: a name that `flute.codebook` knows, "kmeans" (`fit_codebook` of this matrix), or a table: real numbers
        [2^bits], or [N, 2^bits] for one table a row, in any order.
    group_size: 32, 64, 128 or 256 consecutive k share a scale; -1: all of a row do.
    scale_dtype: of the scales: "fp32", "fp16", "bf16" or a numpy dtype of these.
    clip: multiplies each group's absmax, in (0, 1].
    max_magnitude: what absmax is divided by to give the scale; None: 2^(bits-1) - 1 for "int", and the largest
        magnitude of the table for every other.
    method: "rtn" takes scales and table as said above; "mse" searches for the scales and learns a table of the matrix's
        own, beginning with the one given, that leave little squared error: neither clip, max_magnitude nor a table a
        row go with it.

    Raises TypeError, and ValueError naming row and column of a weight that is not finite, or whose scale would not be.
    """
    where = "quantize"
    function = _METHODS[checked_method(method, f"{where}: method")]
    values, element = _weight(weight, where)
    group_size = checked_group_size(group_size, f"{where}: group_size")
    width = None if bits is None else integer(bits, f"{where}: bits", 1, 8)
    magnitude = 0.0  # for the library: the table's largest
    if isinstance(codebook, str):
        width = 4 if width is None else width
        if codebook == "kmeans":
            table = _fit(values, element, width, group_size, where)
        else:
            table, magnitude = _named(codebook, width, where)
    else:
        table = _table(codebook, f"{where}: codebook")
        length = table.shape[-1]
        if width is not None and length != 1 << width:
            raise ValueError(f"{where}: codebook: expected {1 << width} values for {width} bits, found {length}")
        if table.ndim == 2 and len(table) != len(values):
            raise ValueError(f"{where}: codebook: expected [{len(values)}, {length}], found {list(table.shape)}")
        width = length.bit_length() - 1
    clip = positive_float32(clip, f"{where}: clip", 1.0)
    if method == "mse":
        for name, given in (("clip", clip != 1), ("max_magnitude", max_magnitude is not None)):
            if given:
                raise ValueError(f"{where}: {name}: expected none with 'mse', which searches for the scales")
        if table.ndim == 2:
            raise ValueError(f"{where}: codebook: expected one table for 'mse' to begin with, found one a row")
    if max_magnitude is not None:
        magnitude = positive_float32(max_magnitude, f"{where}: max_magnitude")
    pool = _threads.pool()
    args = QuantizeArgs(
        size=ctypes.sizeof(QuantizeArgs),
        weight=values.ctypes.data,
        n=values.shape[0],
        k=values.shape[1],
        group_size=group_size,
        dtype=element.code,
        scale_dtype=parse_dtype(scale_dtype, f"{where}: scale_dtype").code,
        codebook=table.ctypes.data,
        codebook_rows=1 if table.ndim == 1 else len(table),
        bits=width,
        max_magnitude=magnitude,
        clip=clip,
        threads=pool.pointer,
    )
    pointer = ctypes.c_void_p()
    check(function(args, pointer), where)
    owner = Handle(pointer, lib.flute_packed_destroy)
    view = PackedView(size=ctypes.sizeof(PackedView))
    check(lib.flute_packed_get_view(pointer, view), where)
    return QuantizedTensor._from_view(view, owner)


def checked_method(method: str, where: str) -> str:
    if not isinstance(method, str) or method not in _METHODS:
        raise ValueError(f"{where}: expected 'rtn' or 'mse', found {method!r}")
    return method


def _weight(weight: Array, where: str) -> tuple[Array, Element]:
    values, element = float_array(weight, f"{where}: weight")
    if values.ndim != 2 or values.shape[1] == 0 or values.shape[1] % 32 != 0:
        raise ValueError(
            f"{where}: weight: expected shape [N, K] with K a positive multiple of 32, found {list(values.shape)}"
        )
    return contiguous(values), element


def _named(name: str, bits: int, where: str) -> tuple[Array, float]:
    """The table, and the magnitude that absmax is divided by."""
    if not isinstance(name, str):
        raise TypeError(f"{where}: expected the name of a codebook, found {type(name).__name__}")
    values = np.empty(1 << bits, np.float32)
    magnitude = ctypes.c_float()
    encoded = name.encode(errors="replace").replace(b"\0", b"?")
    check(lib.flute_codebook_named(encoded, bits, values.ctypes.data, magnitude), where)
    return values, magnitude.value


def _fit(weight: Array, element: Element, bits: int, group_size: int, where: str) -> Array:
    values = np.empty(1 << bits, np.float32)
    n, k = weight.shape
    pool = _threads.pool()
    check(
        lib.flute_codebook_fit_kmeans(
            weight.ctypes.data, element.code, n, k, bits, group_size, pool.pointer, values.ctypes.data
        ),
        where,
    )
    return values
