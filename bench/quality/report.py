#!/usr/bin/env python3
"""Makes docs/quality.md's tables and picture of what bench/quality/run measured: report.py [RESULTS.json]

docs/images/quality.svg   for each model what quantizing costs, against bits per weight, a line for each method
docs/quality.md           the tables of the same figures

Needs only Python. The same input gives the same bytes.
"""

import argparse
import json
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from plot import Svg, spread  # noqa: E402

# Rows, and the line that each belongs to: methods that are given a table were measured with two.
ROWS = {
    "`rtn`, NormalFloat": "rtn",
    "`rtn`, k-means": "rtn kmeans",
    "`awq`, NormalFloat": "awq",
    "`awq`, k-means": "awq kmeans",
    "`gptq`, NormalFloat": "gptq",
    "`gptq`, k-means": "gptq kmeans",
    "`mse`": "mse",
    "`ldlq`": "ldlq",
}
METHODS = ("rtn", "mse", "awq", "gptq", "ldlq")
STYLES = {"rtn": 4, "mse": 2, "awq": 3, "gptq": 1, "ldlq": 0}  # of plot.py's colours
LOWEST, HIGHEST = 1, 400  # percent that the picture shows
TICKS = (1, 3, 10, 30, 100, 300)


def grouped(data):
    """(model, method, bits, group) -> cell, and the models in their order."""
    cells = {(cell["model"], cell["method"], cell["bits"], cell["group"]): cell for cell in data["cells"]}
    models = sorted({cell["model"] for cell in data["cells"]}, reverse=True)
    return cells, models


def plain(cells, model):
    return cells[(model, "none", 16, 0)]["perplexity"]


def number(value):
    return f"{value:.3f}" if value < 1000 else f"{value:.0f}"


def replace_between(page, name, table):
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def seconds(value):
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def formats_of(cells):
    """(bits, group), the widest first; group 0 are layers with formats of their own."""
    return sorted({key[2:] for key in cells if key[3] != 0}, key=lambda one: (-one[0], -one[1]))


def span(values, digits):
    low, high = digits(min(values)), digits(max(values))
    return low if low == high else f"{low} to {high}"


def perplexity_table(cells, models):
    formats = formats_of(cells)
    width = [
        span([cell["bits_per_weight"] for key, cell in cells.items() if key[2:] == one], "{:.3f}".format)
        for one in formats
    ]
    rows = [
        ["", *(f"{bits} bits, group {group}" for bits, group in formats)],
        ["---"] * (len(formats) + 1),
        ["bits per weight, with scales and tables", *width],
    ]
    for name, method in ROWS.items():
        row = [name]
        for one in formats:
            figures = []
            for model in models:
                cell = cells.get((model, method, *one))
                peers = [peer["perplexity"] for key, peer in cells.items() if key[0] == model and key[2:] == one]
                words = number(cell["perplexity"]) if cell else "–"
                figures.append(f"**{words}**" if cell and cell["perplexity"] == min(peers) else words)
            row.append(" / ".join(figures))
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def target_table(cells, models):
    """Chosen formats beside the best uniform ones that are as large."""
    rows = [["bits per weight, at most", "all layers alike", "chosen, `--target-bits`"], ["---"] * 3]
    for target in sorted({key[2] for key in cells if key[1] == "ldlq" and key[3] == 0}):
        alike, chosen, sizes = [], [], []
        for model in models:
            # Tables, 0.002 bits here, are not held against the uniform ones.
            some = [
                cell
                for key, cell in cells.items()
                if key[:2] == (model, "ldlq") and key[3] != 0 and cell["bits_per_weight"] < target + 0.01
            ]
            best = min(some, key=lambda cell: cell["perplexity"])
            alike.append(f"{number(best['perplexity'])} ({best['bits']} bits, group {best['group']})")
            cell = cells[(model, "ldlq", target, 0)]
            chosen.append(number(cell["perplexity"]))
            sizes.append(cell["bits_per_weight"])
        rows.append([str(target), " / ".join(alike), f"**{' / '.join(chosen)}** ({span(sizes, '{:.3f}'.format)} bits)"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cost_table(cells, models):
    rows = [["", "processor time, s", "peak memory, MB"], ["---"] * 3]
    for method in METHODS:
        some = [
            [cell for key, cell in cells.items() if key[0] == model and key[1].split()[0] == method and key[3] != 0]
            for model in models
        ]
        times = [span([cell["cpu_seconds"] for cell in of_model], seconds) for of_model in some]
        peaks = [f"{max(cell['peak_bytes'] for cell in of_model) / 1e6:.0f}" for of_model in some]
        rows.append([f"`{method}`", " / ".join(times), " / ".join(peaks)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(cells, models, path):
    left, right, above, below, panel, gap = 78, 96, 110, 56, 300, 34
    width, height = left + right + len(models) * panel + (len(models) - 1) * gap, 488
    groups = [key[3] for key in cells if key[3] != 0]
    shown = max(sorted(set(groups)), key=groups.count)
    bits = [cell["bits_per_weight"] for key, cell in cells.items() if key[3] == shown]
    low, high = min(bits) - 0.25, max(bits) + 0.25
    bottom = height - below

    def y_of(percent):
        return bottom - (bottom - above) * math.log(percent / LOWEST) / math.log(HIGHEST / LOWEST)

    def x_of(column, value):
        return left + column * (panel + gap) + panel * (value - low) / (high - low)

    lines, words, labels, outside = [], [], [], []
    for column, model in enumerate(models):
        for method in METHODS:
            points = []
            for width_bits in sorted({one[0] for one in formats_of(cells)}, reverse=True):
                found = [cells.get((model, method + table, width_bits, shown)) for table in ("", " kmeans")]
                cell = min(filter(None, found), key=lambda one: one["perplexity"], default=None)
                if cell is None:
                    continue
                percent = 100 * (cell["perplexity"] / plain(cells, model) - 1)
                words.append(f"{model} {method} {width_bits} bits: {number(cell['perplexity'])}")
                if LOWEST <= percent <= HIGHEST:
                    points.append((x_of(column, cell["bits_per_weight"]), y_of(percent)))
                else:
                    outside.append(f"{method} at {width_bits} bits")
            lines.append((method, points))
            if column == len(models) - 1 and points:
                labels.append((points[0][1], method))
    title = "What quantizing costs: perplexity above the unquantized model's"
    svg = Svg(width, height, title, f"{'; '.join(words)}.")
    svg.text(24, 32, title, "title")
    note = f"group {shown}; all linear layers of the blocks; rtn, awq, gptq: NormalFloat or k-means, the better"
    svg.text(24, 52, note, "small")
    if outside:
        svg.text(24, 70, f"above the picture: {', '.join(dict.fromkeys(outside))}", "small")
    for column, model in enumerate(models):
        begin = left + column * (panel + gap)
        svg.text(begin + panel / 2, above - 14, f"{model} ({plain(cells, model):.3f})", "mid")
        for tick in TICKS:
            svg.path([(begin, y_of(tick)), (begin + panel, y_of(tick))], "grid")
            if column == 0:
                svg.text(begin - 10, y_of(tick) + 4, f"+{tick} %", "end")
        for tick in range(math.ceil(low), math.floor(high) + 1):
            svg.text(x_of(column, tick), bottom + 20, str(tick), "mid")
    svg.text(left + (width - left - right) / 2, height - 14, "bits per weight, with scales and tables", "mid small")
    for method, line in lines:
        style = STYLES[method]
        svg.path(line, f"line p{style}" if method == "ldlq" else f"peer p{style}")
        for x, y in line:
            svg.dot(x, y, 4 if method == "ldlq" else 3.2, f"q{style}")
    for y, method in spread(labels, 16, above, bottom):
        svg.text(width - right + 12, y + 4, method, f"q{STYLES[method]}")
    svg.write(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path, nargs="?", default=ROOT / "bench/results/quality.json")
    parser.add_argument("--image", type=pathlib.Path, default=ROOT / "docs/images/quality.svg", help="the picture")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs/quality.md", help="page with the tables")
    options = parser.parse_args()
    data = json.loads(options.results.read_text(encoding="utf-8"))
    cells, models = grouped(data)
    draw(cells, models, options.image)
    page = options.page.read_text(encoding="utf-8")
    page = replace_between(page, "perplexity", perplexity_table(cells, models))
    page = replace_between(page, "target", target_table(cells, models))
    page = replace_between(page, "cost", cost_table(cells, models))
    options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
