"""What the package asks of arrays and other arguments before the library sees them."""

import importlib
import operator
import os
from typing import Any, Literal, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._library import Error, Handle

Array: TypeAlias = NDArray[Any]
DTypeName: TypeAlias = Literal["fp32", "fp16", "bf16"]
MOST_SEGMENTS = 4  # matrices stacked along N in one multiply
SEGMENT_ROWS = 32  # each but the last has a multiple of
EXPECTED_DTYPES = "float32, float16 or bfloat16 (of ml_dtypes)"


class Element(NamedTuple):
    """An element type of the library."""

    name: DTypeName
    code: int  # flute_dtype
    storage: np.dtype[Any]  # what numpy itself can hold it in: bf16 as bits


FP32 = Element("fp32", 0, np.dtype(np.float32))
FP16 = Element("fp16", 1, np.dtype(np.float16))
BF16 = Element("bf16", 2, np.dtype(np.uint16))
ELEMENTS: dict[str, Element] = {element.name: element for element in (FP32, FP16, BF16)}


def bfloat16() -> np.dtype[Any]:
    """numpy's dtype for bf16, which only the package ml_dtypes has."""
    try:
        dtype: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise Error(
            "bf16: expected the package ml_dtypes, which gives numpy this type, found none: pip install ml_dtypes",
            "unsupported",
        ) from None
    return dtype


def public_dtype(element: Element) -> np.dtype[Any]:
    """The dtype in which users see `element`."""
    return bfloat16() if element is BF16 else element.storage


def element_of(dtype: np.dtype[Any]) -> Element | None:
    """The element type of a numpy dtype of native byte order; None where the library has no such type."""
    if dtype.name == "bfloat16" and dtype.itemsize == 2:
        return BF16
    return next((element for element in (FP32, FP16) if dtype == element.storage), None)


def parse_dtype(value: Any, where: str) -> Element:
    """ "fp32", "fp16", "bf16", or what numpy.dtype() takes and the library has."""
    if isinstance(value, str) and value in ELEMENTS:
        return ELEMENTS[value]
    try:
        found = element_of(np.dtype(value)) if value is not None else None
    except TypeError:
        found = None
    if found is None:
        raise TypeError(f"{where}: expected 'fp32', 'fp16', 'bf16' or a numpy dtype of these, found {value!r}")
    return found


def float_array(value: Any, where: str) -> tuple[Array, Element]:
    """`value` and its element type; bf16 as bits."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{where}: expected a numpy array, found {type(value).__name__}")
    element = element_of(value.dtype)
    if element is None:
        raise TypeError(f"{where}: expected {EXPECTED_DTYPES}, found {value.dtype}")
    return value.view(np.ndarray).view(element.storage), element


def contiguous(array: Array) -> Array:
    """The array, or a copy, C-contiguous and aligned."""
    return np.require(array, requirements=["C", "A"])


def integer(value: SupportsIndex, where: str, lowest: int, highest: int) -> int:
    try:
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{where}: expected an integer, found {type(value).__name__}") from None
    if not lowest <= found <= highest:
        raise ValueError(f"{where}: expected {lowest}..{highest}, found {found}")
    return found


def positive_float32(value: float, where: str, highest: float = float(np.finfo(np.float32).max)) -> float:
    """A number that is above 0 as a float32, too: the C ABI takes 0 for "not given"."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{where}: expected a number, found {value!r}") from None
    if not float(np.finfo(np.float32).smallest_subnormal) <= found <= highest:
        raise ValueError(f"{where}: expected a number above 0, at most {highest:g}, found {found:g}")
    return found


def checked_group_size(value: SupportsIndex, where: str) -> int:
    found = integer(value, where, -1, 256)
    if found not in (-1, 32, 64, 128, 256):
        raise ValueError(f"{where}: expected 32, 64, 128, 256 or -1, found {found}")
    return found


def group_count(k: int, group_size: int) -> int:
    return 1 if group_size < 0 else -(-k // group_size)


def encoded_path(path: str | os.PathLike[str], where: str) -> bytes:
    try:
        text = os.fspath(path)
    except TypeError:
        raise TypeError(f"{where}: expected a path, found {type(path).__name__}") from None
    if not isinstance(text, str):
        raise TypeError(f"{where}: expected a path of str, found {type(text).__name__}")
    if "\0" in text:
        raise ValueError(f"{where}: expected a path without NUL characters, found {text!r}")
    return os.fsencode(text)


class _Borrowed:
    def __init__(
        self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object, read_only: bool = True
    ) -> None:
        self.__array_interface__ = {"data": (pointer, read_only), "shape": shape, "typestr": dtype.str, "version": 3}
        self.owner = owner


def borrowed(pointer: int | None, shape: tuple[int, ...], dtype: np.dtype[Any], owner: Handle) -> Array:
    """A read-only array of the library's memory. It keeps `owner`, to whom that belongs, alive."""
    if not pointer or 0 in shape:
        return read_only(np.empty(shape, dtype))
    return np.asarray(_Borrowed(pointer, shape, dtype, owner))


def seemingly_writable(array: Array) -> Array:
    """The same memory for PyTorch, which has no tensors that are read-only and warns of arrays that are; bf16, which
    numpy calls uint16, as int16, which every version of PyTorch knows."""
    dtype = np.dtype(np.int16) if array.dtype == np.uint16 else array.dtype
    if array.size == 0:
        return np.empty(array.shape, dtype)
    return np.asarray(_Borrowed(array.ctypes.data, array.shape, dtype, array, read_only=False))


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
