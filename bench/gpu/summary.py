#!/usr/bin/env python3
"""Prints what result files of the lab say: summary.py [--cases] RESULTS.json...

Few tokens: geometric means of floor / time and cuBLAS / time over the fused Llama-3-8B, Llama-3-70B and Gemma-2-9B
shapes, the worst shapes, steps from one M to the next, chains. Many: geometric means of cuBLAS / time, of the fraction
of the bound, and sustained, over the Llama shapes; the worst shapes; numbers of tokens that fit no tile; where the
times of the families cross. Both: what bf16, group 32 and stacked layers cost. --cases: a line for each case, too.
"""

import argparse
import json
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from plot import LAYERS  # noqa: E402

FUSED = [shape for model in ("Llama-3-8B", "Llama-3-70B", "Gemma-2-9B") for shape in LAYERS[model].values()]
LLAMA = FUSED[:8]
AWKWARD = [(384, 384), (1024, 384), (384, 1024), (3072, 256), (4224, 4160), (1152, 640), (11008, 4096)]
MANY = 33  # tokens from which the tables are those of many
FLOPS = 700e12  # of an H100's tensor cores at its power limit
LAUNCH_US = 1.8
SMALL = 4e6  # bytes of codes below which a launch, not reading, sets the time


def geomean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def fraction(case):
    return case["floor_us"] / case["us"]


def speedup(case):
    return case["cublas_us"] / case["us"]


def bound_us(case):
    """What no kernel can be faster than: reading the weights, or multiplying."""
    return max(case["floor_us"], LAUNCH_US + 2e6 * case["m"] * case["n"] * case["k"] / FLOPS)


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
        sustained = f", sustained {r['cublas_sustained_us'] / r['sustained_us']:.2f}x" if "sustained_us" in r else ""
        print(
            f"{r['set']:8} {r['dtype']} {format_of(r):13} m {r['m']:<3} {shape_of(r):13} dependent {r['dependent']} "
            f"segments {r['segments']} {plan}: {r['us']:7.2f} us, floor {r['floor_us']:6.2f} = {fraction(r):.3f}, "
            f"cuBLAS {r['cublas_us']:7.2f} = {speedup(r):.2f}x{sustained}"
        )


def print_geomeans(cases):
    """For each format, dtype and way of launching the geometric means over the fused shapes that were measured."""
    print(
        f"floor / time (cuBLAS fp16 / time), geometric means over the {len(FUSED)} fused shapes, or as many as it says"
    )
    of_kind = {}
    for r in cases.values():
        if r["segments"] == 1 and (r["n"], r["k"]) in FUSED and r["m"] < MANY:
            kind = (-r["bits"], r["group"], r["dtype"], not r["dependent"])
            of_kind.setdefault(kind, {}).setdefault(r["m"], []).append(r)
    for (bits, group, dtype, plain), by_tokens in sorted(of_kind.items()):
        texts = []
        for m, some in sorted(by_tokens.items()):
            if len(some) < len(FUSED) // 2:  # a sample, not the table
                continue
            dense = [speedup(r) for r in some if r["cublas_us"]]
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
    for r in sorted(slower, key=speedup)[:10]:
        print(f"  {speedup(r):.2f}x {shape_of(r)} {format_of(r)} {r['dtype']} m {r['m']}")


def print_many(cases):
    """Geometric means over the Llama shapes for each number of tokens, where all of them were measured."""
    print(f"many tokens: cuBLAS fp16 / time; fraction of the bound; sustained; over the {len(LLAMA)} Llama shapes")
    of_kind = {}
    for r in cases.values():
        if (r["n"], r["k"]) in LLAMA and r["m"] >= MANY and r["segments"] == 1 and r["dependent"] and r["cublas_us"]:
            of_kind.setdefault((-r["bits"], r["group"], r["dtype"]), {}).setdefault(r["m"], []).append(r)
    for (bits, group, dtype), by_tokens in sorted(of_kind.items()):
        for m, some in sorted(by_tokens.items()):
            if len(some) < len(LLAMA):
                continue
            worst = min(some, key=speedup)
            sustained = [r["cublas_sustained_us"] / r["sustained_us"] for r in some if r.get("sustained_us")]
            print(
                f"  {-bits} bits g{group} {dtype} m {m:<4}: {geomean([speedup(r) for r in some]):.3f}x, "
                f"{geomean([bound_us(r) / r['us'] for r in some]):.3f} of the bound"
                + (f", sustained {geomean(sustained):.3f}x" if len(sustained) == len(some) else "")
                + f", worst {speedup(worst):.3f}x ({shape_of(worst)})"
            )
    large = [r for r in cases.values() if r["m"] >= 128 and r["cublas_us"] and r["dependent"]]
    for name, limit, awkward in (("shapes of models", 0.92, False), ("awkward shapes", 0.8, True)):
        some = [r for r in large if ((r["n"], r["k"]) in AWKWARD) == awkward]
        below = sorted((r for r in some if speedup(r) < limit), key=speedup)
        if some:
            print(f"{name}, M >= 128: {len(below)} of {len(some)} below {limit:.2f}x")
        for r in below[:10]:
            print(f"  {speedup(r):.3f}x {shape_of(r)} {format_of(r)} {r['dtype']} m {r['m']}: {r['us']:.2f} us")


def print_odd(cases):
    """Time per token of M against the power of two below it."""
    worst = {}
    for key, r in cases.items():
        m = r["m"]
        below = 1 << (m.bit_length() - 1)
        base = cases.get((*key[:5], below, *key[6:]))
        if m >= MANY and m != below and base and base["m"] >= MANY:
            worst.setdefault(m, []).append((r["us"] / m / (base["us"] / below), shape_of(r), format_of(r)))
    for m, ratios in sorted(worst.items()):
        most = max(ratios)
        mean, below = geomean([ratio for ratio, *_ in ratios]), 1 << (m.bit_length() - 1)
        print(f"time per token, M {m} / {below}: {mean:.3f}, most {most[0]:.3f} ({most[1]}, {most[2]})")


def print_families(rows):
    """Decode's time / prefill's, geometric means over the shapes where both were measured."""
    times = {}
    for r in rows:
        if r["set"] == "families" and "family" in r:
            key = (-r["bits"], r["m"])
            times.setdefault(key, {}).setdefault((r["n"], r["k"]), {})[r["family"]] = r["us"]
    for bits in sorted({bits for bits, _ in times}):
        texts = []
        for (_, m), shapes in sorted(item for item in times.items() if item[0][0] == bits):
            ratios = [both["decode"] / both["prefill"] for both in shapes.values() if len(both) == 2]
            if ratios:
                texts.append(f"m {m}: {geomean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"time of decode / prefill, {-bits} bits: {', '.join(texts)}")


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
        if len(steps) >= 16:
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
        if "floor_us" in r and "n" in r and r["us"] > 0 and r["set"] not in ("rows", "families"):
            key = (r["bits"], r["group"], r["dtype"], r["n"], r["k"], r["m"], r["dependent"], r["segments"])
            cases.setdefault(key, r)
    few = {key: r for key, r in cases.items() if r["m"] < MANY}
    many = {key: r for key, r in cases.items() if r["m"] >= MANY}
    print_geomeans(cases)
    print_worst(few)
    print_many(cases)
    print_odd(cases)
    print_families(rows)
    time = lambda r: r["us"]  # noqa: E731
    for some, of in ((few, f"M < {MANY}"), (many, f"M >= {MANY}")):
        bf16 = lambda r: r["dtype"] == "bf16"  # noqa: E731
        print_against(some, f"bf16 / fp16, time, {of}", bf16, time, lambda key: (*key[:2], "fp16", *key[3:]))
        stacked = lambda r: r["segments"] > 1  # noqa: E731
        print_against(some, f"stacked / one layer, time, {of}", stacked, time, lambda key: (*key[:7], 1))
        value, name = (fraction, "fraction of the floor") if some is few else (time, "time")
        for group in (64, 128):
            of_group = lambda key, group=group: (key[0], group, *key[2:])  # noqa: E731
            print_against(some, f"group 32 / {group}, {name}, {of}", lambda r: r["group"] == 32, value, of_group)
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
