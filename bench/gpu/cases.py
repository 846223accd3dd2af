#!/usr/bin/env python3
"""Writes the lab's case lists: `cases.py SET...` prints one case a line (key=value pairs)."""

import sys

# (N, K) of tests/shapes.hpp: the fused layers of Llama-3-8B, Llama-3-70B and Gemma-2-9B, then the rest.
FUSED = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
FUSED += [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)]
FUSED += [(8192, 3584), (3584, 4096), (28672, 3584), (3584, 14336)]
OTHERS = [(1024, 4096), (14336, 4096), (5120, 8192), (8192, 4096), (28672, 8192), (8192, 14336), (2560, 8192)]
OTHERS += [(14336, 8192), (8192, 2048), (8192, 7168), (8192, 4608), (4608, 4096), (73728, 4608), (4608, 36864)]
OTHERS += [(384, 384), (1024, 384), (384, 1024), (3072, 256), (4224, 4160), (1152, 640), (11008, 4096)]
SMALL = [(4096, 4096), (6144, 4096), (28672, 4096), (8192, 8192), (4096, 14336)]
LLAMA, ALL = FUSED[:8], FUSED + OTHERS
TOKENS = (1, 2, 4, 8, 16, 32)
MORE_TOKENS = (3, 7, 13, 17)
MANY_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096)
ODD_TOKENS = (33, 53, 65, 96, 129, 200, 257, 300, 513, 1000)
ALL_TOKENS = (1, 2, 3, 4, 7, 8, 13, 16, 17, 32, 33, 53, 64, 96, 128, 256, 257, 512, 1024, 4096)  # tests/shapes.hpp's
SUSTAINED = 1024  # tokens from which the card runs at its power limit
FORMATS = [(4, 128), (3, 64), (2, 64)]
BULK = [(1024, 2), (1024, 4), (1024, 8), (2048, 2), (2048, 3), (2048, 4), (2048, 6), (4096, 3)]  # bytes, stages


def lines(name, shapes, tokens, formats=FORMATS, **more):
    """Of many tokens the multiply and cuBLAS take turns: what heats the card then slows both."""
    for bits, group in formats:
        for n, k in shapes:
            for m in tokens:
                extra = {"by_turns": 1, **more} if m > TOKENS[-1] else more
                words = "".join(f" {key}={value}" for key, value in extra.items())
                yield f"set={name} m={m} n={n} k={k} bits={bits} group={group}{words}"


def prefill():
    yield from lines("prefill", LLAMA, [m for m in MANY_TOKENS if m < SUSTAINED])
    yield from lines("prefill", LLAMA, [m for m in MANY_TOKENS if m >= SUSTAINED], sustained=1)


def families():
    """Both families of kernels on either side of where the plan changes from one to the other."""
    for family in (1, 2):
        yield from lines("families", LLAMA, (8, 16, 24, 32, 40, 48, 64, 96, 128), family=family, by_turns=1)


def readers():
    """Ways of keeping memory busy, over 4.3 MB to 117 MB, by bytes in flight per multiprocessor."""
    for size in (4325376, 8650752, 33816576, 121110528):
        for per_sm in (2, 4, 8):
            for unroll in (2, 4, 8):
                yield f"read=plain per_sm={per_sm} stages={unroll} bytes={size}"
        for per_sm, depth in ((1, 4), (1, 8), (1, 16), (2, 8), (2, 16)):
            yield f"read=async per_sm={per_sm} stages={depth} bytes={size}"
        for per_sm in (1, 2):
            for piece, stages in BULK:
                yield f"read=bulk per_sm={per_sm} piece={piece} stages={stages} bytes={size}"


def mixed():
    """Codes of one's own beside activations that all read, by cluster size."""
    for cluster in (1, 2, 4):
        for own, common in ((24576, 0), (24576, 8192), (24576, 16384), (24576, 32768), (24576, 65536), (512, 65536)):
            yield f"mixed={cluster} own={own} common={common}"


def formats():
    """What else a matrix may be: group sizes, row segments with tables of their own."""
    yield from lines("formats", SMALL, (1, 16), [(4, 32), (4, 64), (4, -1), (3, 32), (2, 32)])
    for segments in (2, 4):
        yield from lines("formats", SMALL, (1, 16), segments=segments)


def prefill_formats():
    yield from lines("prefill_formats", SMALL, (64, 256, 1024), [(4, 32), (4, 64), (4, -1), (3, 32), (2, 32)])
    for segments in (2, 4):
        yield from lines("prefill_formats", SMALL, (64, 256, 1024), segments=segments)


def rows():
    """Plans that the library does not make."""
    for count in (4, 5, 7):
        yield from lines("rows", SMALL, (1, 8), rows=count)
    yield from lines("rows", SMALL, (1, 8), [(2, 64)], depth=1)


def chain():
    for bits, group in FORMATS:
        for m in (1, 16):
            yield f"chain=1 m={m} bits={bits} group={group}"


SETS = {
    "main": lambda: lines("main", FUSED, TOKENS),
    "group64": lambda: lines("group64", FUSED, TOKENS, [(4, 64)]),
    "bf16": lambda: lines("bf16", FUSED, (1, 8, 16, 32), FORMATS + [(4, 64)], dtype="bf16"),
    "plain_launch": lambda: lines("plain_launch", FUSED, (1, 8, 16), dependent=0),
    "tokens": lambda: lines("tokens", FUSED, MORE_TOKENS),
    "others": lambda: lines("others", OTHERS, sorted(TOKENS + MORE_TOKENS)),
    "steps": lambda: lines("steps", [(6144, 4096), (8192, 8192)], range(1, 65), by_turns=0),
    "formats": formats,
    "chain": chain,
    "rows": rows,
    "readers": readers,
    "mixed": mixed,
    "prefill": prefill,
    "prefill_others": lambda: lines("prefill_others", [shape for shape in ALL if shape not in LLAMA], MANY_TOKENS),
    "prefill_bf16": lambda: lines("prefill_bf16", LLAMA, MANY_TOKENS, dtype="bf16"),
    "prefill_tokens": lambda: lines("prefill_tokens", LLAMA, ODD_TOKENS),
    "prefill_formats": prefill_formats,
    "prefill_mma": lambda: lines("prefill_mma", LLAMA, (128, 256, 512, 1024), family=3),  # those of other cards
    "families": families,
    "matrix_fp16": lambda: lines("matrix_fp16", ALL, ALL_TOKENS),
    "matrix_bf16": lambda: lines("matrix_bf16", ALL, ALL_TOKENS, dtype="bf16"),
}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("\n".join(SETS[name]()))
