#!/usr/bin/env python3
"""Writes the lab's case lists: `cases.py SET...` prints one case a line (key=value pairs)."""

import sys

LLAMA = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
LLAMA += [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)]
OTHERS = [(8192, 3584), (3584, 4096), (28672, 3584), (3584, 14336), (5120, 8192), (2560, 8192), (1024, 4096)]
BULK = [(1024, 2), (1024, 4), (1024, 8), (2048, 2), (2048, 3), (2048, 4), (2048, 6), (4096, 3)]  # bytes, stages
FORMATS = [(4, 128), (3, 64), (2, 64)]


def line(name, m, n, k, bits, group, **more):
    extra = " ".join(f"{key}={value}" for key, value in more.items())
    return f"set={name} m={m} n={n} k={k} bits={bits} group={group} {extra}".rstrip()


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


def main_table(tokens=(1, 2, 4, 8, 16, 32, 64), formats=FORMATS, shapes=LLAMA, **more):
    for bits, group in formats:
        for n, k in shapes:
            for m in tokens:
                yield line("main", m, n, k, bits, group, **more)


def sets():
    small = [(4096, 4096), (6144, 4096), (28672, 4096), (8192, 8192), (4096, 14336)]
    out = {"readers": list(readers()), "mixed": list(mixed()), "main": list(main_table())}
    out["plain_launch"] = list(main_table(tokens=(1, 8, 16), dependent=0))
    out["rows"] = [
        line("rows", m, n, k, b, g, rows=r, depth=d)
        for n, k in small
        for m in (1, 8)
        for b, g in FORMATS
        for r in (4, 5, 7)
        for d in ((1, 2) if b == 2 else (1,))
    ]
    out["formats"] = [
        line("formats", 1, n, k, 4, group, dtype=dtype)
        for n, k in small
        for group, dtype in ((32, "fp16"), (64, "fp16"), (-1, "fp16"), (128, "bf16"))
    ] + [line("formats", 1, n, k, 4, 128, segments=s) for n, k in small for s in (2, 4)]
    out["steps"] = [line("steps", m, n, k, b, g) for n, k in small[:2] for m in range(1, 65) for b, g in FORMATS]
    out["others"] = [line("others", m, n, k, b, g) for n, k in OTHERS for m in (1, 8, 16) for b, g in FORMATS]
    return out


if __name__ == "__main__":
    table = sets()
    for name in sys.argv[1:]:
        print("\n".join(table[name]))
