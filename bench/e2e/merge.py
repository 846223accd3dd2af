#!/usr/bin/env python3
"""Puts what measure.py wrote side by side, in Markdown: times, and speed-ups over the unquantized run of the model.

    merge.py *.json [--json merged.json]

Rows are grouped by model and GPUs. Where a group has several unquantized runs (every series measures it anew), a row
is compared with the last one before it, in the order given.
"""

import argparse
import json
import pathlib


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
    head = [
        "engine",
        *(f"batch {batch}" for batch in batches),
        "first token",
        *["mixed tokens/s"] * mixed,
        "weights GB",
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
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables(rows):
    """Markdown of all groups."""
    return "\n\n".join(
        f"{model}, {gpus} x {device}, ms (speed-up over unquantized):\n\n{table(group)}"
        for (model, gpus, device), group in grouped(rows).items()
    )


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
