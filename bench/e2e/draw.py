#!/usr/bin/env python3
"""Draws what merge.py merged: speed-up over unquantized weights against batch size, a panel for each model; and writes
merge.py's tables into a page.

    draw.py bench/results/e2e-h100.json docs/images/e2e-speedup.svg docs/serving.md

Needs only Python. The same input gives the same bytes.
"""

import json
import pathlib
import sys

from merge import grouped, speedups, tables

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from plot import Svg, replace_table, spread  # noqa: E402

LEFT, TOP, WIDTH, HEIGHT, NAMES = 50, 74, 250, 280, 120  # of a panel; beside it stand the engines' names
# Classes of line and text; dashed where the head is quantized, too.
OURS = {f"flute-{bits}": (f"line s{bits}", f"f{bits}") for bits in (4, 3, 2)}
OURS |= {f"flute-{bits}-head": (f"floor s{bits}", f"f{bits}") for bits in (4, 3)}


def style(engine, others):
    """Line and text."""
    if engine in OURS:
        return OURS[engine]
    return f"peer p{others.index(engine) % 6}", f"q{others.index(engine) % 6}"


def panel(svg, left, title, rows):
    """rows: [(engine, {batch: speed-up})]"""
    batches = sorted({batch for _, line in rows for batch in line})
    most = max([2.0, *(value for _, line in rows for value in line.values())])
    others = [engine for engine, _ in rows if engine not in OURS]

    def at(batch, value):
        step = WIDTH / max(1, len(batches) - 1)
        return left + batches.index(batch) * step, TOP + HEIGHT * (1 - value / (1.1 * most))

    svg.text(left, TOP - 16, title)
    for tick in range(int(2.2 * most) + 1):
        y = at(batches[0], tick / 2)[1]
        svg.path([(left, y), (left + WIDTH, y)], "one" if tick == 2 else "grid")
        svg.text(left - 8, y + 4, f"{tick / 2:g}x", "small end")
    for batch in batches:
        svg.text(at(batch, 0)[0], TOP + HEIGHT + 18, str(batch), "small mid")
    svg.text(left + WIDTH / 2, TOP + HEIGHT + 38, "requests at a time", "small mid")
    labels = []
    for engine, line in rows:
        points = [at(batch, line[batch]) for batch in sorted(line)]
        svg.path(points, style(engine, others)[0])
        for x, y in points:
            svg.dot(x, y, 3, style(engine, others)[1])
        labels.append((points[-1][1], engine))
    for y, engine in spread(labels, 16, TOP, TOP + HEIGHT):
        svg.text(left + WIDTH + 10, y + 4, engine, f"small {style(engine, others)[1]}")


def main():
    results, image, page = map(pathlib.Path, sys.argv[1:])
    rows = json.loads(results.read_text())["rows"]
    panels = []
    for (model, gpus, device), group in grouped(rows).items():
        lines = [(engine, line) for engine, line in speedups(group) if line]
        if any(len(line) > 1 for _, line in lines):
            panels.append((f"{model}, {gpus} x {device}", lines))
    title = "Decode in vLLM: how many times as fast as unquantized"
    svg = Svg(30 + len(panels) * (LEFT + WIDTH + NAMES), TOP + HEIGHT + 60, title, f"{title}, against the batch size.")
    svg.text(24, 32, title, "title")
    for number, (name, lines) in enumerate(panels):
        panel(svg, 20 + LEFT + number * (LEFT + WIDTH + NAMES), name, lines)
    svg.write(image)
    page.write_text(replace_table(page.read_text(), "e2e", tables(rows)))


if __name__ == "__main__":
    main()
