#!/usr/bin/env python3
"""What compare.py measured, as Markdown: table.py bench/results/peers-h100.json [docs/benchmarking.md]

Prints the tables; with a page, puts them into it. Needs only Python.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from plot import geomean, replace_table  # noqa: E402


def times_of(rows):
    """{(bits, group): {peer: {(n, k, m): us}}}; cuBLAS is of none of these formats: {(n, k, m): us}"""
    formats, cublas = {}, {}
    for row in rows:
        case = row["n"], row["k"], row["m"]
        if row["bits"] == 16:
            cublas[case] = row["us"]
        else:
            formats.setdefault((row["bits"], row["group"]), {}).setdefault(row["peer"], {})[case] = row["us"]
    return formats, cublas


def markdown(title, tokens, lines):
    """lines: [(name, {m: cell})]"""
    head = [f"| {title} | " + " | ".join(f"M={m}" for m in tokens) + " |", "|" + "---|" * (1 + len(tokens))]
    return head + [f"| {name} | " + " | ".join(cells.get(m, "") for m in tokens) + " |" for name, cells in lines]


def by_tokens(pairs):
    """{m: [ratio, ...]} of {(n, k, m): ratio}"""
    found = {}
    for (_, _, m), ratio in pairs.items():
        found.setdefault(m, []).append(ratio)
    return found


def tables(rows):
    """Of each format: speed-up over cuBLAS, and where FLUTE compares worst with each of the others."""
    formats, cublas = times_of(rows)
    tokens, parts = sorted({m for _, _, m in cublas}), []
    for (bits, group), times in formats.items():
        means, worst = [], []
        for peer, own in times.items():
            ratios = by_tokens({case: cublas[case] / us for case, us in own.items()})
            means.append((peer, {m: f"{geomean(found):.2f}" for m, found in ratios.items()}))
        ours = times.get("FLUTE", {})
        for peer, own in {**times, "cuBLAS fp16": cublas}.items():
            if not peer.startswith("FLUTE"):
                ratios = by_tokens({case: us / own[case] for case, us in ours.items() if case in own})
                worst.append((peer, {m: f"{geomean(found):.2f} ({max(found):.2f})" for m, found in ratios.items()}))
        shapes = len({case[:2] for case in ours or cublas})
        parts += [f"{bits} bits, group {group}, {shapes} shapes:", ""]
        parts += [*markdown("cuBLAS's time / its own, geometric mean", tokens, means), ""]
        parts += [*markdown("FLUTE's time / its own, geometric mean (largest)", tokens, worst), ""]
    return "\n".join(parts[:-1])


def main():
    rows = json.loads(pathlib.Path(sys.argv[1]).read_text())["rows"]
    print(tables(rows))
    for page in map(pathlib.Path, sys.argv[2:]):
        page.write_text(replace_table(page.read_text(), "peers", tables(rows)))


if __name__ == "__main__":
    main()
