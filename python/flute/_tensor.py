"""QuantizedTensor, and the multiply with it."""

import ctypes
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _threads
from ._arrays import (
    BF16,
    ELEMENTS,
    FP32,
    Array,
    DTypeName,
    Element,
    borrowed,
    checked_group_size,
    contiguous,
    float_array,
    group_count,
    integer,
    parse_dtype,
    public_dtype,
    read_only,
)
from ._library import CPU, GemmArgs, Handle, PackedView, check, lib
from ._packing import pack_codes, unpack_codes

if TYPE_CHECKING:
    import torch

    from . import _operator


class QuantizedTensor:
    """A weight matrix [N, K] as codes, scales and a codebook, exactly as a checkpoint holds it (docs/format.md).

    Made by `flute.quantize`, `flute.Checkpoint`, `from_codes` or `from_packed`. Immutable: its arrays are read-only.
    The first multiply makes a copy of the codes in the CPU's own layout, which stays with the object. `to("cuda")`
    gives one whose codes are on a GPU, in its layout and nowhere else. May be pickled, and used by several threads at
    once.
    """

    n: int
    """Output features."""
    k: int
    """Input features, a multiple of 32."""
    bits: int
    """Width of a code, 1..8."""
    group_size: int
    """32, 64, 128 or 256 consecutive k share a scale; -1: all of a row do."""
    codebook: Array
    """The table, float32 [2^bits], or [N, 2^bits]: one for each row."""

    _packed: Array | None  # None where a device has the codes
    _scales: Array  # bf16 as bits, and so are offsets: bf16 files are read without ml_dtypes, too
    _offsets: Array | None
    _scale_element: Element
    _matrix: Handle | None  # what gemm multiplies arrays with, from the first time on
    _operand: "_operator.Packed | _operator.Tiled | None"  # and tensors

    def __init__(self) -> None:
        raise TypeError("QuantizedTensor: made by flute.quantize, flute.Checkpoint, from_codes and from_packed")

    @classmethod
    def _make(
        cls,
        shape: tuple[int, int],
        bits: int,
        group_size: int,
        packed: Array | None,
        scales: Array,
        scale_element: Element,
        offsets: Array | None,
        codebook: Array,
    ) -> "QuantizedTensor":
        result = cls.__new__(cls)
        result.n, result.k = shape
        result.bits, result.group_size = bits, group_size
        result._packed, result.codebook = packed, codebook
        result._scales, result._offsets, result._scale_element = scales, offsets, scale_element
        result._matrix = result._operand = None
        return result

    @classmethod
    def _from_view(cls, view: PackedView, owner: Handle) -> "QuantizedTensor":
        """A tensor whose arrays are `owner`'s memory."""
        element = next(element for element in ELEMENTS.values() if element.code == view.scale_dtype)
        groups = (view.n, group_count(view.k, view.group_size))
        table = (view.n,) * (view.codebook_rows > 1) + (1 << view.bits,)
        return cls._make(
            (view.n, view.k),
            view.bits,
            view.group_size,
            borrowed(view.codes, (view.n, view.k // 32 * view.bits), np.dtype(np.int32), owner),
            borrowed(view.scales, groups, element.storage, owner),
            element,
            borrowed(view.offsets, groups, element.storage, owner) if view.offsets else None,
            borrowed(view.codebook, table, FP32.storage, owner),
        )

    @classmethod
    def from_codes(
        cls,
        codes: Array,
        codebook: ArrayLike,
        scales: Array,
        *,
        group_size: SupportsIndex | None = None,
        offsets: Array | None = None,
    ) -> "QuantizedTensor":
        """A matrix of any codes and any table.

        codes: integers [N, K], K a positive multiple of 32, each below 2^bits; bits is what the codebook's length says.
        codebook: real numbers [2^bits], or [N, 2^bits] for one table a row, finite, in any order; kept as float32.
        scales: float32, float16 or bfloat16 [N, ceil(K / group_size)], finite; the last group may be short.
        group_size: 32, 64, 128, 256 or -1; None: what the shape of `scales` says (one column: -1).
        offsets: as the scales, or None.

        Everything is copied. Raises TypeError and ValueError.
        """
        where = "from_codes"
        if not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu":
            found = codes.dtype if isinstance(codes, np.ndarray) else type(codes).__name__
            raise TypeError(f"{where}: codes: expected a numpy array of integers, found {found}")
        if codes.ndim != 2:
            raise ValueError(f"{where}: codes: expected shape [N, K], found {list(codes.shape)}")
        table = _table(codebook, f"{where}: codebook")
        bits = table.shape[-1].bit_length() - 1
        return cls.from_packed(
            pack_codes(codes, bits, _where=f"{where}: codes"),
            table,
            scales,
            bits=bits,
            group_size=group_size,
            offsets=offsets,
            _where=where,
        )

    @classmethod
    def from_packed(
        cls,
        packed: Array,
        codebook: ArrayLike,
        scales: Array,
        *,
        bits: SupportsIndex,
        group_size: SupportsIndex | None = None,
        offsets: Array | None = None,
        _where: str = "from_packed",
    ) -> "QuantizedTensor":
        """The same of codes that are packed already, as `pack_codes` does and files hold them: int32 or uint32
        [N, K * bits / 32]. bits: 1..8. The rest as in `from_codes`.
        """
        bits = integer(bits, f"{_where}: bits", 1, 8)
        if not isinstance(packed, np.ndarray) or packed.dtype not in (np.dtype(np.int32), np.dtype(np.uint32)):
            found = packed.dtype if isinstance(packed, np.ndarray) else type(packed).__name__
            raise TypeError(f"{_where}: packed: expected a numpy array of int32 or uint32, found {found}")
        if packed.ndim != 2 or packed.shape[1] == 0 or packed.shape[1] % bits != 0:
            raise ValueError(
                f"{_where}: packed: expected shape [N, K * {bits} / 32] with K a positive multiple of 32, "
                f"found {list(packed.shape)}"
            )
        values = float_array(scales, f"{_where}: scales")
        shift = None if offsets is None else float_array(offsets, f"{_where}: offsets")
        return cls._checked(packed, codebook, values, shift, bits, group_size, _where)

    @classmethod
    def _checked(
        cls,
        packed: Array,
        codebook: ArrayLike,
        scales: tuple[Array, Element],
        offsets: tuple[Array, Element] | None,
        bits: int,
        group_size: SupportsIndex | None,
        where: str,
    ) -> "QuantizedTensor":
        """from_packed, of words whose shape has been checked, and values in their storage dtype."""
        n, k = packed.shape[0], packed.shape[1] // bits * 32
        table = _table(codebook, f"{where}: codebook")
        if table.shape not in ((1 << bits,), (n, 1 << bits)):
            raise ValueError(
                f"{where}: codebook: expected shape [{1 << bits}] or [{n}, {1 << bits}], found {list(table.shape)}"
            )
        scale_values, element = scales
        size = _group_size(group_size, scale_values, k, where)
        expected = (n, group_count(k, size))
        _check_groups(scale_values, element, expected, size, f"{where}: scales")
        offset_values = None
        if offsets is not None:
            offset_values, offset_element = offsets
            if offset_element is not element:
                raise TypeError(
                    f"{where}: offsets: expected {element.name} as the scales are, found {offset_element.name}"
                )
            _check_groups(offset_values, element, expected, size, f"{where}: offsets")
            offset_values = _own(offset_values)
        words = _own(packed.view(np.int32))
        return cls._make((n, k), bits, size, words, _own(scale_values), element, offset_values, _own(table))

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)"""
        return self.n, self.k

    @property
    def packed(self) -> Array:
        """The codes, int32 [N, K * bits / 32]: code k in bits [k * bits, (k + 1) * bits) of its row's bit stream. Of a
        tensor on a GPU a copy, made each time."""
        if self._packed is not None:
            return self._packed
        assert self._operand is not None
        return self._operand.packed()

    @property
    def device(self) -> str:
        """Where it can be multiplied with: "cpu", or "cuda:0" and so on."""
        return "cpu" if self._packed is not None else str(self._operand.device)  # type: ignore[union-attr]

    def to(self, device: "str | int | torch.device", dtype: "torch.dtype | None" = None) -> "QuantizedTensor":
        """The same matrix on another device: "cpu", "cuda", "cuda:1"; itself when it is there. It needs PyTorch.

        dtype: on a GPU of the activations, torch.float16 or torch.bfloat16: scales and codebook are held there rounded
            to it. None: PyTorch's default dtype where it is one of these, else that of the scales, or fp16. Another one
            is added when the first such activations come, but not under torch.compile or in a CUDA graph.

        GPUs take 2, 3 and 4 bits, one codebook a matrix, no offsets. The codes are held once, on the device; scales and
        codebook stay in host memory as the file has them, too. Raises TypeError, ValueError, and flute.Error of kind
        "unsupported" (the format, the library or the GPU cannot) or "device".
        """
        from . import _operator

        return _operator.moved(self, device, dtype)

    @property
    def scale_dtype(self) -> DTypeName:
        """Of scales and offsets: "fp32", "fp16" or "bf16"."""
        return self._scale_element.name

    @property
    def scales(self) -> Array:
        """[N, ceil(K / group_size)]. flute.Error when they are bf16 and ml_dtypes is not installed."""
        return self._scales.view(public_dtype(self._scale_element))

    @property
    def offsets(self) -> Array | None:
        """As the scales, or None."""
        return None if self._offsets is None else self._offsets.view(public_dtype(self._scale_element))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, offsets and codebook, as in a file."""
        arrays = (self._scales, self._offsets, self.codebook)
        return self.n * self.k * self.bits // 8 + sum(array.nbytes for array in arrays if array is not None)

    def codes(self) -> Array:
        """The codes one by one: uint8 [N, K]."""
        return unpack_codes(self.packed, self.bits)

    def tensors(self, prefix: str = "") -> dict[str, Array]:
        """What a checkpoint holds for the layer named `prefix`: "PREFIX.weight_packed" and so on, to be saved with
        safetensors. flute.Error when the scales are bf16 and ml_dtypes is not installed.
        """
        parts = {"weight_packed": self.packed, "weight_scale": self.scales, "weight_codebook": self.codebook}
        if self.offsets is not None:
            parts["weight_offset"] = self.offsets
        return {f"{prefix}.{name}" if prefix else name: array for name, array in parts.items()}

    def dequantize(self, dtype: DTypeLike | DTypeName = "fp32") -> Array:
        """The matrix [N, K] that these codes stand for: rn(rn(codebook[code]) * rn(scale)), then rn(... + rn(offset)),
        rn being rounding to `dtype`. It is what `gemm` multiplies activations of that dtype with.

        dtype: "fp32", "fp16", "bf16" or a numpy dtype of these. Raises TypeError; flute.Error when it is bf16 and
        ml_dtypes is not installed.
        """
        element = parse_dtype(dtype, "dequantize: dtype")
        result = np.empty(self.shape, public_dtype(element))
        packed = self.packed
        check(lib.flute_dequantize(self._view(packed), 0, self.n, element.code, result.ctypes.data), "dequantize")
        return result

    def _view(self, packed: Array) -> PackedView:
        """For the library, while this object and its codes, `packed`, live."""
        return PackedView(
            ctypes.sizeof(PackedView),
            self.n,
            self.k,
            self.group_size,
            self.bits,
            self._scale_element.code,
            packed.ctypes.data,
            self._scales.ctypes.data,
            None if self._offsets is None else self._offsets.ctypes.data,
            self.codebook.ctypes.data,
            1 if self.codebook.ndim == 1 else self.n,
        )

    def _prepared(self) -> Handle:
        """The matrix in the CPU's layout. Two threads that come first at once both make it, and one is kept."""
        if self._matrix is None:
            pointer = ctypes.c_void_p()
            if self._packed is None:
                raise ValueError(f"gemm: x: expected a torch tensor on {self.device} as q is, found a numpy array")
            segments = (ctypes.POINTER(PackedView) * 1)(ctypes.pointer(self._view(self._packed)))
            pool = _threads.pool()
            check(lib.flute_matrix_create(CPU, FP32.code, segments, 1, pool.pointer, pointer), "gemm")
            self._matrix = Handle(pointer, lib.flute_matrix_destroy)
        return self._matrix

    def __reduce__(self) -> tuple[Callable[..., "QuantizedTensor"], tuple[Any, ...]]:
        arrays = (self.packed, self._scales, self._scale_element.name, self._offsets, self.codebook)
        return _restore, (self.shape, self.bits, self.group_size, *arrays)

    def __repr__(self) -> str:
        tables = "one codebook" if self.codebook.ndim == 1 else "a codebook a row"
        place = "" if self._packed is not None else f", on {self.device}"
        return (
            f"QuantizedTensor({self.n} x {self.k}, {self.bits} bits, group size {self.group_size}, "
            f"{self.scale_dtype} scales, {tables}{place})"
        )


@overload
def gemm(x: Array, q: QuantizedTensor, bias: Array | None = None) -> Array: ...
@overload
def gemm(x: "torch.Tensor", q: QuantizedTensor, bias: "torch.Tensor | None" = None) -> "torch.Tensor": ...
def gemm(x: Any, q: QuantizedTensor, bias: Any = None) -> Any:
    """Y = X W^T (+ bias) where `q` is, W being the matrix that it stands for.

    x: float32, float16 or bfloat16 [..., K], any strides and any number of leading dimensions, also empty ones: a numpy
        array, or a torch tensor where the PyTorch operator is installed. Of tensors, x and bias get gradients; call it
        once with this q before torch.compile traces it, or use flute.Linear. On a GPU, where `q.to("cuda")` is, x is a
        tensor of float16 or bfloat16 and the call is asynchronous on PyTorch's current stream.
    bias: [N] of x's dtype, or None.

    Returns [..., N] of x's dtype. Codebook and scales are rounded to that dtype, sums are fp32, rounded once. The same
    call gives the same bits, whatever the number of threads. Raises TypeError and ValueError; flute.Error of kind
    "unsupported" for a tensor without the operator.
    """
    if not isinstance(q, QuantizedTensor):
        raise TypeError(f"gemm: q: expected a QuantizedTensor, found {type(q).__name__}")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        if q._operand is None:
            from . import _operator

            q._operand = _operator.Packed(q)
        return q._operand.multiply(x, bias)
    values, element = float_array(x, "gemm: x")
    if values.ndim == 0 or values.shape[-1] != q.k:
        raise ValueError(f"gemm: x: expected shape [..., {q.k}], found {list(values.shape)}")
    args = GemmArgs(size=ctypes.sizeof(GemmArgs), dtype=element.code)
    if bias is not None:
        bias_values, bias_element = float_array(bias, "gemm: bias")
        if bias_element is not element:
            raise TypeError(f"gemm: bias: expected {element.name} as x is, found {bias_element.name}")
        if bias_values.shape != (q.n,):
            raise ValueError(f"gemm: bias: expected shape [{q.n}], found {list(bias_values.shape)}")
        bias_values = contiguous(bias_values)
        args.bias = bias_values.ctypes.data
    rows = values.reshape(-1, q.k)
    if not _rows_in_place(rows):
        rows = contiguous(rows)
    result = np.empty((*values.shape[:-1], q.n), x.dtype)
    pool = _threads.pool()
    args.m, args.x, args.y, args.threads = len(rows), rows.ctypes.data, result.ctypes.data, pool.pointer
    args.ldx = rows.strides[0] // rows.itemsize if len(rows) > 1 else 0
    matrix = q._prepared()
    check(lib.flute_gemm(matrix.pointer, args), "gemm")
    return result


def _rows_in_place(rows: Array) -> bool:
    """Whether the library can read these rows where they are: each contiguous, none overlapping the next."""
    row, element = rows.strides
    if element != rows.itemsize or not rows.flags.aligned:
        return False
    return len(rows) <= 1 or (row % rows.itemsize == 0 and row >= rows.shape[1] * rows.itemsize)


def _restore(
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    packed: Array,
    scales: Array,
    scale_dtype: str,
    offsets: Array | None,
    codebook: Array,
) -> QuantizedTensor:
    """What pickle calls."""
    for array in (packed, scales, offsets, codebook):
        if array is not None:
            read_only(array)
    return QuantizedTensor._make(shape, bits, group_size, packed, scales, ELEMENTS[scale_dtype], offsets, codebook)


def _own(array: Array) -> Array:
    return read_only(np.array(array, order="C"))


def _table(codebook: ArrayLike, where: str) -> Array:
    """A codebook as float32, checked but for its number of rows."""
    table = np.asarray(codebook)
    if table.dtype.kind not in "iuf" and table.dtype.name != "bfloat16":
        raise TypeError(f"{where}: expected real numbers, found {table.dtype}")
    length = table.shape[-1] if table.ndim else 0
    if table.ndim not in (1, 2) or length not in (2, 4, 8, 16, 32, 64, 128, 256):
        raise ValueError(f"{where}: expected shape [2^bits] or [N, 2^bits] with bits 1..8, found {list(table.shape)}")
    with np.errstate(over="ignore"):
        table = table.astype(np.float32)
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        raise ValueError(f"{where}: expected finite values of fp32, found {table[tuple(bad[0])]} at {bad[0].tolist()}")
    return table


def _group_size(given: SupportsIndex | None, scales: Array, k: int, where: str) -> int:
    if given is not None:
        return checked_group_size(given, f"{where}: group_size")
    if scales.ndim != 2:
        raise ValueError(f"{where}: scales: expected shape [N, groups], found {list(scales.shape)}")
    # No two sizes make the same number of groups above one.
    for size in (-1, 32, 64, 128, 256):
        if group_count(k, size) == scales.shape[1]:
            return size
    raise ValueError(
        f"{where}: scales: expected a column for each group of 32, 64, 128, 256 or all of K = {k}, "
        f"found {list(scales.shape)}"
    )


def _check_groups(values: Array, element: Element, expected: tuple[int, int], size: int, where: str) -> None:
    if values.shape != expected:
        raise ValueError(f"{where}: expected shape {list(expected)} for group size {size}, found {list(values.shape)}")
    finite = (values & 0x7F80) != 0x7F80 if element is BF16 else np.isfinite(values)
    bad = np.argwhere(~finite)
    if len(bad):
        row, group = bad[0].tolist()
        raise ValueError(f"{where}: expected finite values, found another at row {row}, group {group}")
