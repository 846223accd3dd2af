"""Codes to words and back."""

from typing import SupportsIndex

import numpy as np

from ._arrays import Array, contiguous, integer
from ._library import check, lib


def pack_codes(codes: Array, bits: SupportsIndex, *, _where: str = "pack_codes: codes") -> Array:
    """Packs codes as files hold them: code k in bits [k * bits, (k + 1) * bits) of its row's little-endian bit stream.

    codes: integers [..., K], each in 0 .. 2^bits - 1, K a positive multiple of 32. bits: 1..8.
    Returns int32 [..., K * bits / 32]. Raises TypeError and ValueError.
    """
    bits = integer(bits, "pack_codes: bits", 1, 8)
    if not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu":
        found = codes.dtype if isinstance(codes, np.ndarray) else type(codes).__name__
        raise TypeError(f"{_where}: expected a numpy array of integers, found {found}")
    if codes.ndim == 0 or codes.shape[-1] == 0 or codes.shape[-1] % 32 != 0:
        raise ValueError(
            f"{_where}: expected shape [..., K] with K a positive multiple of 32, found {list(codes.shape)}"
        )
    if codes.size:
        lowest, highest = int(codes.min()), int(codes.max())
        if lowest < 0 or highest >= 1 << bits:
            raise ValueError(
                f"{_where}: expected 0..{(1 << bits) - 1} for {bits} bits, found {lowest if lowest < 0 else highest}"
            )
    source = contiguous(codes.astype(np.uint8))
    words = np.empty((*codes.shape[:-1], codes.shape[-1] // 32 * bits), np.int32)
    check(lib.flute_pack_codes(source.ctypes.data, source.size, bits, words.ctypes.data), "pack_codes")
    return words


def unpack_codes(words: Array, bits: SupportsIndex) -> Array:
    """The inverse of `pack_codes`: int32 or uint32 [..., K * bits / 32] to uint8 [..., K].

    Raises TypeError and ValueError.
    """
    bits = integer(bits, "unpack_codes: bits", 1, 8)
    if not isinstance(words, np.ndarray) or words.dtype not in (np.dtype(np.int32), np.dtype(np.uint32)):
        found = words.dtype if isinstance(words, np.ndarray) else type(words).__name__
        raise TypeError(f"unpack_codes: words: expected a numpy array of int32 or uint32, found {found}")
    if words.ndim == 0 or words.shape[-1] == 0 or words.shape[-1] % bits != 0:
        raise ValueError(
            f"unpack_codes: words: expected shape [..., K * {bits} / 32] with K a positive multiple of 32, "
            f"found {list(words.shape)}"
        )
    source = contiguous(words)
    codes = np.empty((*words.shape[:-1], words.shape[-1] // bits * 32), np.uint8)
    check(lib.flute_unpack_codes(source.ctypes.data, codes.size, bits, codes.ctypes.data), "unpack_codes")
    return codes
