#!/usr/bin/env python3
"""Prints a short table of one or more result files of the lab."""

import json
import math
import sys


def geomean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def main():
    rows = []
    for name in sys.argv[1:]:
        with open(name, encoding="utf-8") as file:
            data = json.load(file)
        rows += data["cases"] if isinstance(data, dict) else data
    for r in rows:
        if r["set"] in ("mma", "mixed"):
            print(r)
    reads = [r for r in rows if r["set"] == "read"]
    for size in sorted({r["bytes"] for r in reads}):
        for mode in ("plain", "async", "bulk"):
            best = sorted((r for r in reads if r["bytes"] == size and r["mode"] == mode), key=lambda r: r["us"])
            text = ", ".join(f"{r['per_sm']}x{r['piece']}x{r['stages']}: {r['us']:.2f}" for r in best)
            print(f"read {size} {mode} (floor {best[0]['floor_us']:.2f}): {text}")
    rest = [r for r in rows if r["set"] not in ("read", "mma", "mixed", "no plan")]
    for r in rest:
        fraction = r["floor_us"] / r["us"] if r["us"] else 0
        plan = f"blocks{r['blocks']} w{r['warps']} r{r['rows']} d{r['depth']}"
        print(
            f"{r['set']:8} {r['dtype']} b{r['bits']} g{r['group']:<3} m{r['m']:<2} {r['n']:>5}x{r['k']:<5} "
            f"pdl{r['dependent']} {plan} seg{r['segments']}: {r['us']:7.2f} "
            f"floor {r['floor_us']:6.2f} = {fraction:.3f}  "
            f"cublas {r['cublas_us']:7.2f} = {r['cublas_us'] / max(r['us'], 1e-9):.2f}x"
        )
    fields = ("set", "dtype", "bits", "group", "dependent", "m")
    for key in sorted({tuple(r[f] for f in fields) for r in rest if r["set"] != "rows"}):
        some = [r for r in rest if tuple(r[f] for f in fields) == key and r["us"]]
        print(
            "geomean",
            key,
            f"floor/us {geomean([r['floor_us'] / r['us'] for r in some]):.3f}",
            f"cublas/us {geomean([max(r['cublas_us'], 1e-9) / r['us'] for r in some]):.2f}",
            f"of {len(some)}",
        )


if __name__ == "__main__":
    main()
