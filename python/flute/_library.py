"""The shared library and its C ABI (include/flute/flute.h) through ctypes. Of this file, Error is public."""

import ctypes
import os
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

ABI_VERSION = 1

library_path: Path = Path(os.environ.get("FLUTE_LIBRARY") or Path(__file__).with_name("libflute.so"))
"""The shared library in use: the one in this package, or what the environment variable FLUTE_LIBRARY names."""


class Error(Exception):
    """What went wrong outside of the arguments.

    kind: "format" (a file does not hold what it should), "io" (the operating system refused a file operation),
    "unsupported" (well-formed, but this build or device cannot do it), "device" (a device or its driver refused) or
    "internal" (a defect of the library).
    """

    def __init__(self, message: str, kind: str = "internal") -> None:
        super().__init__(message)
        self.kind = kind


class PackedView(ctypes.Structure):
    """flute_packed_view"""

    _fields_ = [
        ("size", c_size_t),
        ("n", c_int64),
        ("k", c_int64),
        ("group_size", c_int64),
        ("bits", c_int32),
        ("scale_dtype", c_int32),
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("codebook", c_void_p),
        ("codebook_rows", c_int64),
    ]


class QuantizeArgs(ctypes.Structure):
    """flute_quantize_args"""

    _fields_ = [
        ("size", c_size_t),
        ("weight", c_void_p),
        ("n", c_int64),
        ("k", c_int64),
        ("group_size", c_int64),
        ("dtype", c_int32),
        ("scale_dtype", c_int32),
        ("codebook", c_void_p),
        ("codebook_rows", c_int64),
        ("bits", c_int32),
        ("max_magnitude", c_float),
        ("clip", c_float),
        ("threads", c_void_p),
    ]


class GemmArgs(ctypes.Structure):
    """flute_gemm_args"""

    _fields_ = [
        ("size", c_size_t),
        ("m", c_int64),
        ("x", c_void_p),
        ("ldx", c_int64),
        ("y", c_void_p),
        ("ldy", c_int64),
        ("bias", c_void_p),
        ("dtype", c_int32),
        ("flags", c_int32),
        ("threads", c_void_p),
        ("stream", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    ]


class TiledView(ctypes.Structure):
    """flute_tiled_view"""

    _fields_ = [
        ("size", c_size_t),
        ("k", c_int64),
        ("group_size", c_int64),
        ("segment_rows", c_int64 * 4),
        ("segment_count", c_int32),
        ("bits", c_int32),
        ("dtype", c_int32),
        ("device", c_int32),
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("codebooks", c_void_p),
    ]


class Device(ctypes.Structure):
    """flute_device"""

    _fields_ = [("kind", c_int32), ("index", c_int32)]


CPU = Device(0, 0)

# Every function used, as in flute.h: what it returns and takes. A handle is a void*.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "flute_version": (c_char_p, []),
    "flute_abi_version": (c_int32, []),
    "flute_last_error_message": (c_char_p, []),
    "flute_threads_create": (c_int32, [c_int32, POINTER(c_void_p)]),
    "flute_threads_destroy": (None, [c_void_p]),
    "flute_threads_size": (c_int32, [c_void_p]),
    "flute_codebook_named": (c_int32, [c_char_p, c_int32, c_void_p, POINTER(c_float)]),
    "flute_codebook_read": (c_int32, [c_char_p, POINTER(c_int32), c_void_p, c_size_t]),
    "flute_codebook_fit_kmeans": (
        c_int32,
        [c_void_p, c_int32, c_int64, c_int64, c_int32, c_int64, c_void_p, c_void_p],
    ),
    "flute_pack_codes": (c_int32, [c_void_p, c_int64, c_int32, c_void_p]),
    "flute_unpack_codes": (c_int32, [c_void_p, c_int64, c_int32, c_void_p]),
    "flute_packed_get_view": (c_int32, [c_void_p, POINTER(PackedView)]),
    "flute_packed_destroy": (None, [c_void_p]),
    "flute_quantize_rtn": (c_int32, [POINTER(QuantizeArgs), POINTER(c_void_p)]),
    "flute_dequantize": (c_int32, [POINTER(PackedView), c_int64, c_int64, c_int32, c_void_p]),
    "flute_matrix_create": (
        c_int32,
        [Device, c_int32, POINTER(POINTER(PackedView)), c_int32, c_void_p, POINTER(c_void_p)],
    ),
    "flute_matrix_destroy": (None, [c_void_p]),
    "flute_gemm": (c_int32, [c_void_p, POINTER(GemmArgs)]),
    "flute_tiled_bytes": (c_int32, [POINTER(TiledView), POINTER(c_size_t), POINTER(c_size_t), POINTER(c_size_t)]),
    "flute_tile": (c_int32, [POINTER(TiledView), POINTER(POINTER(PackedView)), c_int32, c_void_p]),
    "flute_untile": (c_int32, [POINTER(TiledView), c_int32, c_void_p, c_void_p]),
    "flute_checkpoint_open": (c_int32, [c_char_p, POINTER(c_void_p)]),
    "flute_checkpoint_destroy": (None, [c_void_p]),
    "flute_checkpoint_layer_count": (c_int64, [c_void_p]),
    "flute_checkpoint_layer_name": (c_char_p, [c_void_p, c_int64]),
    "flute_checkpoint_get_layer": (c_int32, [c_void_p, c_char_p, POINTER(PackedView)]),
}


def _load() -> ctypes.CDLL:
    if not library_path.is_file():
        raise ImportError(
            f"flute: expected its library at {library_path}, found no file; `pip install .` builds it, "
            "and FLUTE_LIBRARY names one that is elsewhere"
        )
    try:
        loaded = ctypes.CDLL(str(library_path))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ImportError(f"flute: {library_path}: {error}") from error
    found = loaded.flute_abi_version()
    if found != ABI_VERSION:
        raise ImportError(f"flute: {library_path}: expected version {ABI_VERSION} of its C ABI, found {found}")
    return loaded


lib = _load()
version: str = lib.flute_version().decode()

_EXCEPTIONS: dict[int, Callable[[str], Exception]] = {
    1: ValueError,
    2: lambda message: Error(message, "format"),
    3: lambda message: Error(message, "io"),
    4: lambda message: Error(message, "unsupported"),
    6: MemoryError,
    7: lambda message: Error(message, "device"),
}


def check(status: int, where: str) -> None:
    """Raises what `status` stands for, with the library's message; `where` is the Python function called."""
    if status == 0:
        return
    # "flute_quantize_rtn: quantize: expected ...": of the functions only the one that the user called is of interest.
    message = lib.flute_last_error_message().decode(errors="replace").partition(": ")[2].removeprefix(f"{where}: ")
    raise _EXCEPTIONS.get(status, Error)(f"{where}: {message}")


class Handle:
    """Owns what a function of the library made."""

    def __init__(self, pointer: c_void_p, destroy: Callable[[c_void_p], None]) -> None:
        self.pointer = pointer
        self._destroy = destroy

    def abandon(self) -> None:
        """Never destroys it."""
        self.pointer = c_void_p()

    def __del__(self) -> None:
        self._destroy(self.pointer)
