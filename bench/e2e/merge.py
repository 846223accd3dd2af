#!/usr/bin/env python3
"""Puts what measure.py wrote side by side, in Markdown: times, and speed-ups over the unquantized run of the model.

    merge.py *.json [--json merged.json]

Rows are grouped by model and GPUs. Where a group has several unquantized runs (every series measures it anew), a row
is compared with the last one before it, in the order given. Where kernels were counted (--kernels), a second table says
what a decode step consists of: the time of kernels by what they do, each counted whole; the time in which any ran; and
the rest of the step. GPU time is the profiler's, and the step without it.
"""

import argparse
import json
import pathlib

# What a kernel does, by words of its name, the first that fits.
KINDS = {
    "quantized layers": ("flute", "marlin", "machete", "humming"),
    "attention": ("flash", "attention", "reshape_and_cache"),
    "dense layers": ("nvjet", "gemm", "gemv", "cutlass", "splitk", "cublas"),
}
REST = "norms, sampling, other"


def grouped(rows):
    """{(model, number of GPUs, device): its rows}"""
    groups = {}
    for row in rows:
        groups.setdefault((row["model"], row["tensor_parallel"], row["device"]), []).append(row)
    return groups


def with_base(rows):
    """[(row, the unquantized row that it is compared with, or None)] of one group."""
    base, pairs = next((row for row in rows if row["engine"] == "unquantized"), None), []
    for row in rows:
        base = row if row["engine"] == "unquantized" else base
        pairs.append((row, base))
    return pairs


def speedups(rows):
    """[(engine, {batch: how many times as fast as unquantized})] of one group, in its order."""
    return [
        (
            row["engine"],
            {int(m): base["decode_ms"][m] / ms for m, ms in row["decode_ms"].items() if m in base["decode_ms"]},
        )
        for row, base in with_base(rows)
        if base is not None and row is not base
    ]


def ratio(base, value):
    return f"{value:.2f}" + (f" ({base / value:.2f}x)" if base else "")


def table(rows):
    """Markdown of one group."""
    batches = sorted({int(batch) for row in rows for batch in row["decode_ms"]})
    mixed = any(row["mixed_tokens_per_s"] for row in rows)
    peaks = any(row.get("peak_gb") for row in rows)
    head = [
        "engine",
        *(f"batch {batch}" for batch in batches),
        "first token",
        *["mixed tokens/s"] * mixed,
        "weights GB",
        *["peak GB"] * peaks,
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row, base in with_base(rows):
        cells = [row["engine"]]
        for batch in map(str, batches):
            value = row["decode_ms"].get(batch)
            cells.append("" if value is None else ratio(base and base["decode_ms"].get(batch), value))
        first = row["first_token_ms"]
        cells.append("" if first is None else ratio(base and base["first_token_ms"], first))
        cells += [str(row["mixed_tokens_per_s"] or "")] * mixed + [f"{row['weight_gb']:.2f}"]
        cells += [f"{row['peak_gb']:.2f}" if row.get("peak_gb") else ""] * peaks
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kind_of(kernel):
    return next((kind for kind, words in KINDS.items() if any(word in kernel.lower() for word in words)), REST)


def table_of_steps(rows):
    """Markdown of what decode steps consist of, microseconds; nothing where no kernels were counted."""
    kinds = [*KINDS, REST]
    lines = []
    for row in rows:
        for batch, step in row.get("steps", {}).items():
            times = dict.fromkeys(kinds, 0)
            for kernel, _, us in step["kernels"]:
                times[kind_of(kernel)] += us
            whole = 1e3 * row["decode_ms"][batch]
            cells = [row["engine"], batch, *(f"{times[kind]:.0f}" for kind in kinds), f"{step['busy_us']:.0f}"]
            lines.append("| " + " | ".join([*cells, f"{whole:.0f}"]) + " |")
    if not lines:
        return ""
    head = ["engine", "batch", *kinds, "any kernel", "the step"]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines])


def tables(rows):
    """Markdown of all groups."""
    parts = []
    for (model, gpus, device), group in grouped(rows).items():
        parts.append(f"{model}, {gpus} x {device}, ms (speed-up over unquantized):\n\n{table(group)}")
        steps = table_of_steps(group)
        if steps:
            parts.append(f"{model}: what a decode step consists of, microseconds:\n\n{steps}")
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=pathlib.Path, nargs="+")
    parser.add_argument("--json", type=pathlib.Path, help="write all rows into one file, which is also read")
    args = parser.parse_args()
    rows = []
    for path in args.rows:
        found = json.loads(path.read_text())
        rows += found["rows"] if "rows" in found else [found]
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print(tables(rows))


if __name__ == "__main__":
    main()
