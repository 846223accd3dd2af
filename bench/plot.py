#!/usr/bin/env python3
"""Draws a result file of the GPU lab: plot.py [RESULTS.json] [--peers PEERS.json ...]

docs/images/decode-speedup.svg   speed-up over cuBLAS fp16 against M, a line for each format and its floor dashed, and
                                 other libraries
docs/images/decode-floor.svg     fraction of the floor for each shape at a few M
docs/images/prefill-speedup.svg  as the first, for many tokens, and what no kernel can be faster than dashed
docs/images/families.svg         as the first, of both families of kernels where the plan changes from one to the other
README.md                        the tables of the first and third plot's figures

The last two plots are made where the file has such cases, the second table where the page has a place for it, too.

Without arguments the files are those of bench/results. Needs only Python. The same input gives the same bytes.
"""

import argparse
import json
import math
import pathlib
from xml.sax.saxutils import escape

FORMATS = {4: 128, 3: 64, 2: 64}  # bits -> the group size that is drawn
# (N, K) of the linear layers. The first plot is the geometric mean over the fused ones of the two Llama models.
LAYERS = {
    "Llama-3-8B": {"qkv": (6144, 4096), "o": (4096, 4096), "gate/up": (28672, 4096), "down": (4096, 14336)},
    "Llama-3-70B": {"qkv": (10240, 8192), "o": (8192, 8192), "gate/up": (57344, 8192), "down": (8192, 28672)},
    "Gemma-2-9B": {"qkv": (8192, 3584), "o": (3584, 4096), "gate/up": (28672, 3584), "down": (3584, 14336)},
    "Gemma-2-27B": {"qkv": (8192, 4608), "o": (4608, 4096), "gate/up": (73728, 4608), "down": (4608, 36864)},
    "70B, half": {"qkv": (5120, 8192), "o": (8192, 4096), "gate/up": (28672, 8192), "down": (8192, 14336)},
    "70B, quarter": {"qkv": (2560, 8192), "o": (8192, 2048), "gate/up": (14336, 8192), "down": (8192, 7168)},
    "8B, unfused": {"k, v": (1024, 4096), "gate": (14336, 4096)},
}
LLAMA = [*LAYERS["Llama-3-8B"].values(), *LAYERS["Llama-3-70B"].values()]
PANELS = (1, 8, 16, 32, 64)
MOST_FEW = 64  # tokens of the plots of few; those of many begin there
# What an H100's tensor cores do at its power limit, and what a launch costs: the bound of many tokens.
FLOPS, LAUNCH_US = 700e12, 1.8
ROOT = pathlib.Path(__file__).resolve().parent.parent

STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI","Helvetica Neue",Arial,sans-serif;fill:#1f2933}
.title{font-size:16px;font-weight:600}.small{font-size:12px;fill:#5b6875}.end{text-anchor:end}.mid{text-anchor:middle}
.card{fill:#fff;stroke:#d5dbe1}.grid{stroke:#e3e8ed}.one{stroke:#5b6875;stroke-width:1.4}
path{fill:none}.line{stroke-width:2.4}.floor{stroke-width:1.6;stroke-dasharray:6 4}.peer{stroke-width:1.5}
.s4{stroke:#1d6fa5}.s3{stroke:#c2570c}.s2{stroke:#2e7d4f}.f4{fill:#1d6fa5}.f3{fill:#c2570c}.f2{fill:#2e7d4f}
.p0{stroke:#7b5ea7}.p1{stroke:#b04a7d}.p2{stroke:#1f8a8a}.p3{stroke:#8a6d3b}.p4{stroke:#5b6875}.p5{stroke:#a33b3b}
.q0{fill:#7b5ea7}.q1{fill:#b04a7d}.q2{fill:#1f8a8a}.q3{fill:#8a6d3b}.q4{fill:#5b6875}.q5{fill:#a33b3b}
@media(prefers-color-scheme:dark){text{fill:#e6eaee}.small{fill:#a3aeb9}.card{fill:#161b22;stroke:#30363d}
.grid{stroke:#2b323a}.one{stroke:#a3aeb9}.s4{stroke:#58a6dd}.s3{stroke:#f0934a}.s2{stroke:#5dbb85}
.f4{fill:#58a6dd}.f3{fill:#f0934a}.f2{fill:#5dbb85}
.p0{stroke:#b79be0}.p1{stroke:#e58ab8}.p2{stroke:#5cc5c5}.p3{stroke:#cbaa6f}.p4{stroke:#a3aeb9}.p5{stroke:#e57f7f}
.q0{fill:#b79be0}.q1{fill:#e58ab8}.q2{fill:#5cc5c5}.q3{fill:#cbaa6f}.q4{fill:#a3aeb9}.q5{fill:#e57f7f}}
"""


def geomean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


class Svg:
    def __init__(self, width, height, title, description):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-labelledby="t d">',
            f'<title id="t">{escape(title)}</title>\n<desc id="d">{escape(description)}</desc>',
            f"<style>{STYLE}</style>",
            f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10"/>',
        ]

    def text(self, x, y, words, style=""):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(words)}</text>')

    def path(self, points, style):
        self.parts.append(f'<path class="{style}" d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>')

    def dot(self, x, y, radius, style):
        self.parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')

    def mark(self, x, y, bits):
        """A shape of its own for each width, so that colour is not all that tells them apart."""
        if bits == 4:
            self.dot(x, y, 4.2, "f4")
            return
        sides = {3: 4, 2: 3}[bits]
        turn = math.pi / 4 if sides == 4 else -math.pi / 2
        corners = [turn + 2 * math.pi * i / sides for i in range(sides)]
        points = " ".join(f"{x + 5.2 * math.cos(a):.1f},{y + 5.2 * math.sin(a):.1f}" for a in corners)
        self.parts.append(f'<polygon class="f{bits}" points="{points}"/>')

    def write(self, path):
        path.write_text("\n".join([*self.parts, "</svg>", ""]), encoding="utf-8")


def read_cases(data, dependent=1):
    """(bits, shape, m) -> a case: fp16, one segment, the library's own plan, with or without dependent launch."""
    cases = {}
    for case in data["cases"]:
        if not {"n", "floor_us"} <= case.keys() or case["set"] in ("rows", "families"):
            continue
        if case["dtype"] == "fp16" and case["dependent"] == dependent and case["segments"] == 1 and case["us"] > 0:
            if FORMATS.get(case["bits"]) == case["group"]:
                cases.setdefault((case["bits"], (case["n"], case["k"]), case["m"]), case)
    return cases


def bound_us(case):
    """What no kernel can be faster than: reading the weights, or multiplying."""
    return max(case["floor_us"], LAUNCH_US + 2e6 * case["m"] * case["n"] * case["k"] / FLOPS)


def speedups(cases, bits, value):
    """[(m, geometric mean of cuBLAS / value(case) over the Llama shapes)], where all of them were measured."""
    line = []
    for m in sorted({m for _, _, m in cases}):
        some = [cases.get((bits, shape, m)) for shape in LLAMA]
        if all(case and case["cublas_us"] > 0 for case in some):
            line.append((m, geomean([case["cublas_us"] / value(case) for case in some])))
    return line


def of(field):
    return lambda case: case[field]


def between(line, least, most=math.inf):
    return [(m, value) for m, value in line if least <= m <= most]


def peer_lines(rows):
    """[(name, [(m, speed-up)])]: times of other libraries against cuBLAS's of the same run, where every shape is there.

    Of the group sizes of a library and width the one that FORMATS names counts, else the largest.
    """
    dense = {(row["n"], row["k"], row["m"]): row["us"] for row in rows if row["peer"].startswith("cuBLAS")}
    others = [row for row in rows if not row["peer"].startswith(("cuBLAS", "FLUTE"))]
    lines = []
    for name, bits in dict.fromkeys((row["peer"], row["bits"]) for row in others):
        some = [row for row in others if (row["peer"], row["bits"]) == (name, bits)]
        groups = {row["group"] for row in some}
        group = FORMATS[bits] if FORMATS.get(bits) in groups else max(groups)
        times = {(row["n"], row["k"], row["m"]): row["us"] for row in some if row["group"] == group}
        line = []
        for m in sorted({m for _, _, m in times}):
            both = [(dense.get((*shape, m)), times.get((*shape, m))) for shape in LLAMA]
            if all(d and t for d, t in both):
                line.append((m, geomean([d / t for d, t in both])))
        if line:
            lines.append((f"{name}, {bits} bits, g{group}", line))
    return lines


def spread(labels, gap, low, high):
    """Moves labels [(y, ...)] apart to at least `gap` between them, in their order, within [low, high]."""
    labels = sorted(labels, key=lambda label: label[0])
    ys = [label[0] for label in labels]
    for i in range(1, len(ys)):
        ys[i] = max(ys[i], ys[i - 1] + gap)
    if ys and ys[-1] > high:
        ys[-1] = high
        for i in reversed(range(len(ys) - 1)):
            ys[i] = min(ys[i], ys[i + 1] - gap)
    return [(max(y, low), *label[1:]) for y, label in zip(ys, labels, strict=True)]


def draw_speedup(data, lines, dashed, peers, words, path):
    """`lines` and `dashed`: bits -> [(m, speed-up)]; `words`: title, what is dashed, and of the description."""
    if not all(lines.values()):
        raise SystemExit("plot.py: expected fp16 cases with cuBLAS times for all Llama shapes at 4, 3 and 2 bits")
    title, dashed_name, description = words
    tokens = [m for m, _ in lines[4]]
    every = [value for line in [*lines.values(), *dashed.values(), *(p[1] for p in peers)] for _, value in line]
    top = math.ceil(max(every) + 0.2)
    width, height, left, right, above, below = 892, 460, 62, 226, 74, 54
    first, octaves = math.log2(tokens[0]), math.log2(tokens[-1] / tokens[0])
    x_of = lambda m: left + (width - left - right) * (math.log2(m) - first) / octaves  # noqa: E731
    y_of = lambda value: height - below - (height - above - below) * value / top  # noqa: E731
    figures = "; ".join(
        f"{bits} bits " + ", ".join(f"{value:.2f} at {m}" for m, value in lines[bits]) for bits in FORMATS
    )
    svg = Svg(width, height, description, f"{data['device']}. {figures}.")
    svg.text(24, 32, title, "title")
    svg.text(
        24,
        52,
        f"geometric mean of the fused Llama-3-8B and -70B shapes; {data['device']}, {data['date'][:10]}",
        "small",
    )
    for value in range(top + 1):
        svg.path([(left, y_of(value)), (width - right, y_of(value))], "one" if value == 1 else "grid")
        svg.text(left - 10, y_of(value) + 4, f"{value}x", "end")
    for m in tokens:
        if m & (m - 1) == 0:
            svg.text(x_of(m), height - below + 20, str(m), "mid")
    svg.text((left + width - right) / 2, height - 14, "M, tokens", "mid small")
    svg.text(left + 8, y_of(1) - 6, "cuBLAS fp16", "small")
    labels = []
    for i, (name, line) in enumerate(peers):
        svg.path([(x_of(m), y_of(value)) for m, value in line], f"peer p{i % 6}")
        for m, value in line:
            svg.dot(x_of(m), y_of(value), 2.6, f"q{i % 6}")
        labels.append((y_of(line[-1][1]), name, 0, f"q{i % 6}"))
    for bits, line in lines.items():
        svg.path([(x_of(m), y_of(value)) for m, value in dashed[bits]], f"floor s{bits}")
        labels.append((y_of(dashed[bits][-1][1]), f"{dashed_name}, {bits} bits", 0, f"f{bits}"))
        svg.path([(x_of(m), y_of(value)) for m, value in line], f"line s{bits}")
        for m, value in line:
            svg.mark(x_of(m), y_of(value), bits)
        labels.append((y_of(line[-1][1]), f"{bits} bits, group {FORMATS[bits]}", bits, f"f{bits}"))
    for y, name, bits, style in spread(labels, 16, above, height - below + 6):
        x = width - right + 14
        if bits:
            svg.mark(x + 4, y, bits)
        svg.text(x + 14, y + 4, name, style)
    svg.write(path)


def draw_few(data, cases, peers, path):
    lines, floors = (
        {bits: between(speedups(cases, bits, value), 1, MOST_FEW) for bits in FORMATS}
        for value in (of("us"), of("floor_us"))
    )
    words = ("Speed-up over cuBLAS fp16", "floor", "Speed-up over cuBLAS fp16 against the number of tokens")
    draw_speedup(data, lines, floors, cut(peers, 1, MOST_FEW), words, path)


def draw_many(data, cases, peers, path):
    lines, bounds = (
        {bits: between(speedups(cases, bits, value), MOST_FEW) for bits in FORMATS} for value in (of("us"), bound_us)
    )
    words = ("Speed-up over cuBLAS fp16, many tokens", "bound", "Speed-up over cuBLAS fp16 against many tokens")
    draw_speedup(data, lines, bounds, cut(peers, MOST_FEW), words, path)


def draw_families(data, path):
    of_family = {"decode": {}, "prefill": {}}
    for case in data["cases"]:
        if case["set"] == "families" and "family" in case:
            of_family[case["family"]][case["bits"], (case["n"], case["k"]), case["m"]] = case
    decode, prefill = (
        {bits: speedups(cases, bits, of("us")) for bits in FORMATS} for cases in (of_family[f] for f in of_family)
    )
    words = (
        "Speed-up over cuBLAS fp16 of either family of kernels",
        "decode",
        "Speed-up over cuBLAS fp16 of both families of kernels against the number of tokens",
    )
    draw_speedup(data, prefill, decode, [], words, path)


def cut(peers, least, most=math.inf):
    shorter = [(name, between(line, least, most)) for name, line in peers]
    return [(name, line) for name, line in shorter if len(line) > 1]


def draw_floor(data, cases, path):
    tokens = [m for m in PANELS if any(key[2] == m for key in cases)]
    measured = {shape for _, shape, _ in cases}
    rows = [(model, part, s) for model, parts in LAYERS.items() for part, s in parts.items() if s in measured]
    left, right, above, below, row, gap = 286, 24, 96, 44, 22, 16
    width, height = left + right + len(tokens) * 140 + (len(tokens) - 1) * gap, above + below + row * len(rows)
    svg = Svg(
        width,
        height,
        "Fraction of the floor for each shape",
        f"{data['device']}. The floor is the time in which a plain kernel reads the same bytes; 1 is as fast as that.",
    )
    svg.text(24, 32, "Fraction of the floor", "title")
    svg.text(24, 52, f"time to read the same bytes once / time of the multiply; {data['device']}", "small")
    x = width - right - 3 * 74
    for bits in FORMATS:
        svg.mark(x, 28, bits)
        svg.text(x + 10, 32, f"{bits} bits", f"f{bits}")
        x += 74
    for i, (model, part, (n, k)) in enumerate(rows):
        y = above + row * i + row / 2
        if i == 0 or rows[i - 1][0] != model:
            svg.text(24, y + 4, model)
        svg.text(122, y + 4, part)
        svg.text(left - 14, y + 4, f"{n} x {k}", "end small")
    for column, m in enumerate(tokens):
        begin = left + column * (140 + gap)
        x_of = lambda value, begin=begin: begin + 140 * min(value, 1.05) / 1.05  # noqa: E731
        svg.text(begin + 70, above - 14, f"M = {m}", "mid")
        for value in (0, 0.25, 0.5, 0.75, 1):
            bottom = height - below
            svg.path([(x_of(value), above), (x_of(value), bottom)], "one" if value == 1 else "grid")
            if value in (0, 0.5, 1):
                svg.text(x_of(value), bottom + 18, f"{value:g}", "mid small")
        for i, (_, _, shape) in enumerate(rows):
            y = above + row * i + row / 2
            svg.path([(x_of(0), y), (x_of(1.05), y)], "grid")
            for bits in FORMATS:
                case = cases.get((bits, shape, m))
                if case:
                    svg.mark(x_of(case["floor_us"] / case["us"]), y, bits)
    svg.write(path)


def rows_of(lines, cell):
    tokens = [m for m, _ in lines[4] if m & (m - 1) == 0]
    table = ["| M | " + " | ".join(map(str, tokens)) + " |", "|---" * (len(tokens) + 1) + "|"]
    for bits, line in lines.items():
        cells = [cell(bits, m, value) for m, value in line if m in tokens]
        table.append(f"| {bits} bits, group {FORMATS[bits]} | " + " | ".join(cells) + " |")
    return table


def source(data):
    return f"{data['device']}, driver {data['driver']}, {data['date'][:10]}; fp16."


def make_table(data, cases):
    lines = {bits: between(speedups(cases, bits, of("us")), 1, MOST_FEW) for bits in FORMATS}
    floors = {bits: dict(speedups(cases, bits, of("floor_us"))) for bits in FORMATS}
    table = rows_of(lines, lambda bits, m, value: f"{value:.2f}x ({value / floors[bits][m]:.2f})")
    notes = source(data)
    plain = read_cases(data, dependent=0)
    alone = {bits: dict(speedups(plain, bits, of("us"))).get(1) for bits in FORMATS}
    if all(alone.values()):
        figures = " / ".join(f"{value:.2f}x ({value / floors[bits][1]:.2f})" for bits, value in alone.items())
        notes += f" Without dependent launch, M = 1: {figures}."
    return "\n".join([*table, "", notes])


def make_many_table(data, cases):
    lines = {bits: between(speedups(cases, bits, of("us")), MOST_FEW) for bits in FORMATS}
    bounds = {bits: dict(speedups(cases, bits, bound_us)) for bits in FORMATS}
    table = rows_of(lines, lambda bits, m, value: f"{value:.2f}x ({value / bounds[bits][m]:.2f})")
    notes = source(data)
    for m in (1024, 4096):
        ratios = []
        for bits in FORMATS:
            some = [cases.get((bits, shape, m), {}) for shape in LLAMA]
            if all(case.get("sustained_us") for case in some):
                ratios.append(geomean([case["cublas_sustained_us"] / case["sustained_us"] for case in some]))
        if len(ratios) == len(FORMATS):
            notes += f" Sustained, M = {m}: {' / '.join(f'{ratio:.2f}x' for ratio in ratios)}."
    return "\n".join([*table, "", notes])


def replace_table(page, name, table):
    begin, end = (f"<!-- {name} table: {word} -->" for word in ("begin", "end"))
    before, rest = page.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path, nargs="?", default=ROOT / "bench/results/kernels-h100.json")
    parser.add_argument(
        "--peers", type=pathlib.Path, nargs="+", help="times of other libraries, of bench/peers/compare.py"
    )
    parser.add_argument("--out", type=pathlib.Path, help="folder for the plots instead; README.md stays as it is")
    parser.add_argument("--page", type=pathlib.Path, help="page whose table is to be replaced")
    options = parser.parse_args()
    data = json.loads(options.results.read_text(encoding="utf-8"))
    cases = read_cases(data)
    # Each file's times are of a run of its own, and so is what they are compared with.
    files = options.peers or sorted((ROOT / "bench/results").glob("peers-*.json"))
    peers = [line for path in files for line in peer_lines(json.loads(path.read_text(encoding="utf-8"))["rows"])]
    out = options.out or ROOT / "docs/images"
    many = any(m > MOST_FEW for _, _, m in cases)
    draw_few(data, cases, peers, out / "decode-speedup.svg")
    draw_floor(data, cases, out / "decode-floor.svg")
    if many:
        draw_many(data, cases, peers, out / "prefill-speedup.svg")
    if any(case["set"] == "families" for case in data["cases"]):
        draw_families(data, out / "families.svg")
    if page := options.page or (None if options.out else ROOT / "README.md"):
        text = replace_table(page.read_text(encoding="utf-8"), "decode", make_table(data, cases))
        if many and "<!-- prefill table: begin -->" in text:
            text = replace_table(text, "prefill", make_many_table(data, cases))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
