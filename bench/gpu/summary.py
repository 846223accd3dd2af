#!/usr/bin/env python3
"""Prints what result files of the lab say: summary.py [--cases] RESULTS.json...

Geometric means of floor / time and cuBLAS / time over the fused Llama-3-8B, Llama-3-70B and Gemma-2-9B shapes, the
worst shapes, what bf16, group 32 and stacked layers cost, steps from one M to the next, chains. --cases: a line for
each case, too.
"""

import argparse
import json
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from plot import LAYERS  # noqa: E402

FUSED = [shape for model in ("Llama-3-8B", "Llama-3-70B", "Gemma-2-9B") for shape in LAYERS[model].values()]
SMALL = 4e6  # bytes of codes below which a launch, not reading, sets the time


def geomean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def fraction(case):
    return case["floor_us"] / case["us"]


def format_of(case):
    return f"{case['bits']} bits g{case['group']}"


def shape_of(case):
    return f"{case['n']} x {case['k']}"


def print_case(r):
    if r["set"] == "read":
        where = f"{r['per_sm']} x {r['piece']} x {r['stages']}"
        print(f"read     {r['mode']:5} {where:12} {r['bytes']:>9} bytes {r['us']:7.2f} us, floor {r['floor_us']:7.2f}")
    elif "floor_us" not in r:
        print(r)
    else:
        plan = r.get("plan") or f"blocks {r['blocks']} warps {r['warps']} rows {r['rows']} depth {r['depth']}"
        print(
            f"{r['set']:8} {r['dtype']} {format_of(r):13} m {r['m']:<3} {shape_of(r):13} dependent {r['dependent']} "
            f"segments {r['segments']} {plan}: {r['us']:7.2f} us, floor {r['floor_us']:6.2f} = {fraction(r):.3f}, "
            f"cuBLAS {r['cublas_us']:7.2f} = {r['cublas_us'] / r['us']:.2f}x"
        )


def print_geomeans(cases):
    """For each format, dtype and way of launching the geometric means over the fused shapes that were measured."""
    print(
        f"floor / time (cuBLAS fp16 / time), geometric means over the {len(FUSED)} fused shapes, or as many as it says"
    )
    of_kind = {}
    for r in cases.values():
        if r["segments"] == 1 and (r["n"], r["k"]) in FUSED:
            kind = (-r["bits"], r["group"], r["dtype"], not r["dependent"])
            of_kind.setdefault(kind, {}).setdefault(r["m"], []).append(r)
    for (bits, group, dtype, plain), by_tokens in sorted(of_kind.items()):
        texts = []
        for m, some in sorted(by_tokens.items()):
            if len(some) < len(FUSED) // 2:  # a sample, not the table
                continue
            dense = [r["cublas_us"] / r["us"] for r in some if r["cublas_us"]]
            count = "" if len(some) == len(FUSED) else f" of {len(some)}"
            texts.append(f"m {m}: {geomean([fraction(r) for r in some]):.3f} ({geomean(dense):.2f}x){count}")
        if texts:
            print(f"  {-bits} bits g{group} {dtype}{' plain launch' if plain else ''}: {', '.join(texts)}")


def print_worst(cases):
    few = [r for r in cases.values() if r["m"] <= 16 and r["dependent"] and r["segments"] == 1]
    large = [r for r in few if r["n"] * r["k"] * r["bits"] / 8 >= SMALL]
    print("worst fractions of the floor, M <= 16, 4 MB of codes and more: one line a shape and format")
    seen = set()
    for r in sorted(large, key=fraction):
        if (kind := (shape_of(r), r["bits"])) not in seen and len(seen) < 10:
            seen.add(kind)
            print(f"  {fraction(r):.3f} {shape_of(r)} {format_of(r)} {r['dtype']} m {r['m']}: {r['us']:.2f} us")
    tiny = [r for r in few if r["n"] * r["k"] * r["bits"] / 8 < SMALL]
    if tiny:
        r = max(tiny, key=lambda r: r["us"] - r["floor_us"])
        over = r["us"] - r["floor_us"]
        print(f"  below 4 MB at most {over:.2f} us over the floor: {shape_of(r)} {format_of(r)} m {r['m']}")
    both = [r for r in cases.values() if r["dependent"] and r["cublas_us"]]
    slower = [r for r in both if r["us"] > 1.02 * r["cublas_us"]]
    print(f"slower than cuBLAS fp16 by more than 2 %: {len(slower)} of {len(both)}")
    for r in sorted(slower, key=lambda r: r["cublas_us"] / r["us"])[:10]:
        print(f"  {r['cublas_us'] / r['us']:.2f}x {shape_of(r)} {format_of(r)} {r['dtype']} m {r['m']}")


def print_against(cases, title, changed, value, other):
    """How cases with `changed` compare with those that differ in nothing else but have `other` there."""
    ratios = []
    for key, r in cases.items():
        if changed(r) and (base := cases.get(other(key))):
            ratios.append((value(r) / value(base), f"{shape_of(r)} {format_of(r)} {r['dtype']} m {r['m']}"))
    if ratios:
        most, least = max(ratios), min(ratios)
        print(
            f"{title}: {geomean([ratio for ratio, _ in ratios]):.3f} of {len(ratios)}, "
            f"most {most[0]:.3f} ({most[1]}), least {least[0]:.3f} ({least[1]})"
        )


def print_steps(cases):
    """time(M + 1) / time(M), where every M was measured."""
    lines = {}
    for (bits, group, dtype, n, k, m, dependent, segments), r in cases.items():
        if dependent and segments == 1:
            lines.setdefault((bits, group, dtype, n, k), {})[m] = r["us"]
    for (bits, group, dtype, n, k), times in sorted(lines.items()):
        steps = [(times[m + 1] / times[m], m) for m in times if m + 1 in times]
        if len(steps) >= 8:
            up, down = max(steps), min(steps)
            print(
                f"steps {n} x {k} {bits} bits g{group} {dtype}, M {min(times)} to {max(times)}: up at most {up[0]:.3f} "
                f"({up[1]} -> {up[1] + 1}), down at most {1 / down[0]:.3f} ({down[1]} -> {down[1] + 1})"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", action="store_true", help="a line for each case as well")
    parser.add_argument("results", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    rows = []
    for path in options.results:
        data = json.loads(path.read_text(encoding="utf-8"))
        print("\n".join(f"{key}: {data[key]}" for key in data if key not in ("cases", "profiles")))
        rows += data["cases"]
    if options.cases:
        for row in rows:
            print_case(row)
    # The library's own plans; "rows" overrules them.
    cases = {}
    for r in rows:
        if "floor_us" in r and "n" in r and r["us"] > 0 and r["set"] != "rows":
            key = (r["bits"], r["group"], r["dtype"], r["n"], r["k"], r["m"], r["dependent"], r["segments"])
            cases.setdefault(key, r)
    print_geomeans(cases)
    print_worst(cases)
    time = lambda r: r["us"]  # noqa: E731
    print_against(
        cases, "bf16 / fp16, time", lambda r: r["dtype"] == "bf16", time, lambda key: (*key[:2], "fp16", *key[3:])
    )
    print_against(cases, "stacked / one layer, time", lambda r: r["segments"] > 1, time, lambda key: (*key[:7], 1))
    for group in (64, 128):
        of_group = lambda key, group=group: (key[0], group, *key[2:])  # noqa: E731
        print_against(
            cases, f"group 32 / {group}, fraction of the floor", lambda r: r["group"] == 32, fraction, of_group
        )
    print_against(
        cases, "plain / dependent launch, time", lambda r: not r["dependent"], time, lambda key: (*key[:6], 1, key[7])
    )
    print_steps(cases)
    for r in rows:
        if r["set"] == "chain":
            print(
                f"chain of Llama-3-8B's block, {format_of(r)} m {r['m']}: {r['us']:.2f} us a layer, "
                f"{r['over_floors']:.3f} of floors {sum(r['floors_us']):.2f} + kernels between {r['between_us']:.2f}; "
                f"plain launch {r['plain_us']:.2f}, cuBLAS alone {r['cublas_us']:.2f}"
            )


if __name__ == "__main__":
    main()
