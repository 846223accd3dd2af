"""FLUTE: weight matrices as small codes and a lookup table, multiplied without ever being written out.

    W[n, k] = codebook[code[n, k]] * scale[n, k // group_size]  (+ offset[n, k // group_size])
    Y[..., n] = sum over k of X[..., k] * W[n, k]  (+ bias[n])

    import flute, numpy as np

    weight = np.random.default_rng().standard_normal((1024, 2048), np.float32)
    q = flute.quantize(weight, bits=4)                   # NormalFloat, one fp16 scale for 64 weights
    y = flute.gemm(np.ones((3, 2048), np.float32), q)    # [3, 1024], on the CPU

Matrices are [N, K]: N output features, K input features, K a multiple of 32. Arrays are numpy's, of float32, float16 or
bfloat16 (the type of that name of `ml_dtypes`); nothing is converted behind your back, so float64 is a TypeError.

Errors: TypeError for an argument of a wrong type or dtype, ValueError for one of a wrong shape or value, MemoryError,
and `flute.Error` for what files and devices do. Each names the argument, what was expected and what was found.
"""

from typing import TYPE_CHECKING, Any

from ._checkpoint import Checkpoint
from ._library import Error, library_path
from ._library import version as __version__
from ._packing import pack_codes, unpack_codes
from ._quantize import codebook, fit_codebook, quantize, read_codebook
from ._tensor import QuantizedTensor, gemm
from ._threads import get_threads, set_threads

if TYPE_CHECKING:
    from ._torch import Linear as Linear
    from ._torch import quantize_model as quantize_model
    from ._torch import stack as stack

__all__ = [
    "Checkpoint",
    "Error",
    "QuantizedTensor",
    "__version__",
    "codebook",
    "fit_codebook",
    "gemm",
    "get_threads",
    "library_path",
    "pack_codes",
    "quantize",
    "read_codebook",
    "set_threads",
    "unpack_codes",
]


def __getattr__(name: str) -> Any:
    """What PyTorch brings is there when PyTorch is, and that is not imported before somebody asks for it."""
    if name not in ("Linear", "quantize_model", "stack"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _torch

    return getattr(_torch, name)
