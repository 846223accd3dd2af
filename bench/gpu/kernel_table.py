#!/usr/bin/env python3
"""What each kernel takes of a multiprocessor: kernel_table.py BUILD_FOLDER [--write docs/kernels.md]

Checks BUILD_FOLDER/libflute.so (through cuobjdump, which comes with CUDA; no GPU needed): exit code 1 if a kernel
spills, uses local memory or holds nothing but a trap, if a prefill kernel has other registers than it shares out, or if
the library is too large. --write replaces the tables in a Markdown file: of decode registers, instructions of the main
loop (this takes nvdisasm, too), and warps and shared memory of the plans that BUILD_FOLDER/gpu_lab prints; of prefill,
which has the registers that it asks for, instructions; of prefill on mma registers and instructions.
"""

import argparse
import collections
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys

BITS = (4, 3, 2)
TARGETS = ("sm_90a", "sm_80")
SMALLEST_M = {8: 1, 16: 9, 32: 17, 64: 33}  # of the kernels for up to so many tokens
MOST_ROWS = 7  # row groups of a step (decode/plan.hpp: max_rows)
# K whose steps have one unit and, where there is such a kernel, two. Both deal out evenly to 8, 12 and 16 warps.
LENGTHS = (3072, 12288)
LARGEST_LIBRARY = 30e6
# Fewer registers than any kernel that multiplies can do with: the compiler has seen that it always traps.
FEWEST_REGISTERS = 32
REGISTERS, WARPS, SHARED = 65536, 64, 228 * 1024  # of a multiprocessor of compute capability 9.0

FUNCTION = re.compile(r"Function (\S+):")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
NAME = re.compile(r"\d+([a-z_]+_kernel)I\d+(__half|__nv_bfloat16)((?:Li-?\d+E)+)E")
PLAN = re.compile(
    r"decode: \d+ blocks of (\d+) x (\d+) warps \(rows x K\), (\d+) x 16 rows and (\d+) x 64 k a step, "
    r"\d+ x 8 tokens, (\d+) KB of shared memory"
)
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
JUMP = re.compile(r"\bBRA\b.* 0x([0-9a-f]+)$")

# What a line of the table is about; bits are its columns.
Line = collections.namedtuple("Line", "m rows depth")
# A prefill tile (prefill/plan.hpp): warpgroups along the rows, 64 each, and along K; tokens.
Tile = collections.namedtuple("Tile", "row_warpgroups depth tokens")


def read_kernels(library, cuobjdump):
    """One entry for each multiply kernel of each target: its template arguments as the compiler saw them."""
    listing = subprocess.run([cuobjdump, "--dump-resource-usage", library], capture_output=True, text=True, check=True)
    kernels, target, name = [], "", ""
    for line in listing.stdout.splitlines():
        if line.startswith("arch = "):
            target = line.removeprefix("arch = ").strip()
        elif match := FUNCTION.search(line):
            name = match.group(1)
        elif match := USAGE.search(line):
            parts = NAME.search(name)
            registers, stack, _, local = map(int, match.groups())
            kernels.append(
                {
                    "target": target,
                    "name": name,
                    "family": parts.group(1) if parts else "",
                    "dtype": parts.group(2) if parts else "",
                    "numbers": tuple(map(int, re.findall(r"Li(-?\d+)E", parts.group(3)))) if parts else (),
                    "registers": registers,
                    "spills": stack > 0 or local > 0,
                }
            )
    return kernels


def launch_registers(tile):
    """What a block's threads have together before its warpgroups share them out anew, a thread."""
    threads = 128 * (tile.row_warpgroups * tile.depth + 1)
    return REGISTERS // threads // 8 * 8


def problems(kernels, library):
    found = [f"{k['target']} {k['name']}: uses local memory" for k in kernels if k["spills"]]
    # Prefill kernels are for wgmma: code of theirs for 8.0 is there and empty, and no plan asks for it.
    families = {"decode_kernel": TARGETS, "prefill_kernel": TARGETS[:1], "prefill_mma_kernel": TARGETS}
    traps = [k for k in kernels if k["target"] in families.get(k["family"], ()) and k["registers"] < FEWEST_REGISTERS]
    if traps:
        found.append(
            f"{traps[0]['target']}: {len(traps)} kernels have fewer than {FEWEST_REGISTERS} registers, so do nothing, "
            f"the first is {traps[0]['name']}"
        )
    tiles = read_tiles()
    for k in kernels:
        if (k["family"], k["target"]) == ("prefill_kernel", TARGETS[0]):
            expected = launch_registers(tiles[k["numbers"][1]])
            if k["registers"] != expected:
                found.append(f"{k['name']}: expected {expected} registers, found {k['registers']}")
    built = {(k["family"], k["target"]) for k in kernels}
    found += [
        f"{library}: no {family}s for {target}"
        for family, targets in families.items()
        for target in targets
        if (family, target) not in built
    ]
    if library.stat().st_size > LARGEST_LIBRARY:
        found.append(f"{library}: expected at most {LARGEST_LIBRARY:.0f} bytes, found {library.stat().st_size}")
    return found


def loop_length(instructions):
    """Instructions of the main loop: (address, text) of each in order. Decode's is the longest loop with tensor-core
    instructions; prefill's, which is inside one that goes from tile to tile, is the shortest."""
    lengths = {"HMMA": [0], "HGMMA": []}
    for address, text in instructions:
        jump = JUMP.search(text)
        begin = int(jump.group(1), 16) if jump else address
        if begin < address:
            body = [words for place, words in instructions if begin <= place <= address]
            for name, found in lengths.items():
                if any(name in words for words in body):
                    found.append(len(body))
    return min(lengths["HGMMA"], default=max(lengths["HMMA"]))


def read_loops(library, cuobjdump, target):
    """Name of each kernel of a target -> instructions of its main loop."""
    tools = {**os.environ, "PATH": f"{pathlib.Path(cuobjdump).resolve().parent}{os.pathsep}{os.environ['PATH']}"}
    command = [cuobjdump, "--dump-sass", "--gpu-architecture", target, library]
    listing = subprocess.run(command, capture_output=True, text=True, check=True, env=tools)
    code = collections.defaultdict(list)
    for line in listing.stdout.splitlines():
        if "Function :" in line:
            name = line.split()[-1]
        elif match := INSTRUCTION.match(line):
            code[name].append((int(match.group(1), 16), match.group(2)))
    return {name: loop_length(instructions) for name, instructions in code.items()}


def read_plans(lab):
    """{line: {bits: (warps, least and most KB of shared memory)}} of decode on an H100, at the ends of M's range."""
    plans = collections.defaultdict(dict)
    sizes = [(16 * 132 * rows, k) for rows in range(1, MOST_ROWS + 1) for k in LENGTHS]
    for most, least in SMALLEST_M.items():
        shared = collections.defaultdict(list)
        for m, bits, (n, k) in itertools.product((least, most), BITS, sizes):
            words = f"plan family=1 group=64 m={m} bits={bits} n={n} k={k}"
            plan = subprocess.run([lab, *words.split()], capture_output=True, text=True, check=True).stdout
            match = PLAN.search(plan)
            if not match:
                raise SystemExit(f"kernel_table.py: expected a plan of decode kernels, found '{plan}'")
            row_warps, k_warps, rows, depth, kilobytes = map(int, match.groups())
            if row_warps == 1:  # as many row groups as its blocks have
                shared[Line(most, rows, depth), bits, k_warps].append(kilobytes)
        for (line, bits, warps), found in shared.items():
            plans[line][bits] = warps, min(found), max(found)
    return plans


def resident_warps(registers, warps, shared_kb):
    """Warps that a multiprocessor holds of a kernel; a block takes 1 KB of shared memory for the system."""
    by_registers = REGISTERS // ((registers + 7) // 8 * 8 * 32 * warps)
    return warps * min(by_registers, SHARED // ((shared_kb + 1) * 1024), WARPS // warps)


def kernels_of(kernels, target, bits, line):
    """All variants of a kernel: dtypes, scale groups in a unit."""
    numbers = (bits, line.m // 8, line.rows, line.depth)
    some = [k for k in kernels if k["target"] == target and k["numbers"][:4] == numbers]
    if not some:
        raise SystemExit(
            f"kernel_table.py: expected a kernel of bits, tiles, rows, depth {numbers} for {target}, found none"
        )
    return some


def make_table(kernels, plans, loops):
    lines = [
        "| M | step: row groups x units | warps | registers, sm_90a | registers, sm_80 | instructions a unit "
        "| shared memory, KB | occupancy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line, found in sorted(plans.items()):
        cells = collections.defaultdict(list)
        occupancy = set()
        for bits in BITS:
            if bits not in found:
                for column in (*TARGETS, "loop", "shared"):
                    cells[column].append("–")
                continue
            warps, least_shared, shared = found[bits]
            for target in TARGETS:
                cells[target].append(str(max(k["registers"] for k in kernels_of(kernels, target, bits, line))))
            plain = [
                k
                for k in kernels_of(kernels, TARGETS[0], bits, line)
                if k["dtype"] == "__half" and k["numbers"][4] == 1
            ]
            cells["loop"].append(f"{loops[plain[0]['name']] / (line.rows * line.depth):.0f}")
            cells["shared"].append(str(shared))
            registers = int(cells[TARGETS[0]][-1])
            occupancy |= {resident_warps(registers, warps, kilobytes) for kilobytes in (least_shared, shared)}
        words = [
            f"{SMALLEST_M[line.m]}–{line.m}",
            f"{line.rows} x {line.depth}",
            " / ".join(sorted({str(warps) for warps, _, _ in found.values()})),
            *(" / ".join(cells[column]) for column in (*TARGETS, "loop", "shared")),
            "–".join(f"{100 * warps / WARPS:.0f}" for warps in sorted({min(occupancy), max(occupancy)})) + " %",
        ]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def read_tiles():
    """kPrefillTiles of prefill/plan.hpp: what the tile numbers of prefill kernels stand for."""
    header = pathlib.Path(__file__).resolve().parents[2] / "src/cuda/prefill/plan.hpp"
    text = header.read_text(encoding="utf-8")
    names = re.search(r"struct PrefillTile \{\s+int ([\w, ]+);", text)
    table = re.search(r"kPrefillTiles\[\] = \{(.*?)\};", text, re.DOTALL)
    if not names or not table:
        raise SystemExit(f"kernel_table.py: expected PrefillTile and kPrefillTiles in {header}")
    tiles = []
    for row in re.findall(r"\{([\d, ]+)\}", table.group(1)):
        # More numbers than names: behind the tile's shape follows what it costs.
        tiles.append(dict(zip(names.group(1).split(", "), map(int, row.split(",")), strict=False)))
    return [Tile(tile["row_warpgroups"], tile["depth"], tile["tokens"]) for tile in tiles]


def make_prefill_table(kernels, loops):
    lines = [
        "| tile: rows x tokens | warps along rows x K | instructions a unit | with scale groups of 32 |",
        "|---|---|---|---|",
    ]
    tiles = read_tiles()
    cells = collections.defaultdict(dict)
    for k in kernels:
        if k["target"] == TARGETS[0] and k["dtype"] == "__half":
            bits, number, groups = k["numbers"]
            cells[tiles[number]][groups, bits] = f"{loops[k['name']] / 2:.0f}"  # the loop has two steps, of a unit each
    for tile, found in sorted(cells.items(), key=lambda item: (item[0].tokens, item[0].row_warpgroups)):
        counts = (" / ".join(found[groups, bits] for bits in BITS) for groups in (1, 2))
        warps = f"{4 * tile.row_warpgroups} x {tile.depth}"
        lines.append(f"| {64 * tile.row_warpgroups} x {tile.tokens} | {warps} | {' | '.join(counts)} |")
    return lines


def make_mma_table(kernels, loops):
    lines = [
        "| a warp's rows | warps along rows | scale groups in a unit | registers, sm_90a | registers, sm_80 "
        "| instructions a unit |",
        "|---|---|---|---|---|---|",
    ]
    for numbers in sorted({k["numbers"][1:] for k in kernels}):  # a warp's row groups, warps, scale groups
        some = [k for k in kernels if k["numbers"][1:] == numbers]
        registers = (
            " / ".join(
                str(max(k["registers"] for k in some if k["target"] == target and k["numbers"][0] == bits))
                for bits in BITS
            )
            for target in TARGETS
        )
        fp16 = {k["numbers"][0]: loops[k["name"]] for k in some if k["target"] == TARGETS[0] and k["dtype"] == "__half"}
        cells = (16 * numbers[0], *numbers[1:], *registers, " / ".join(str(fp16[bits]) for bits in BITS))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def replaced(page, name, text):
    begin, end = (f"<!-- {name} table: {word} -->" for word in ("begin", "end"))
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path, help="make the tables in this Markdown file anew")
    parser.add_argument("--cuobjdump", default=shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump")
    options = parser.parse_args()
    library = options.build / "libflute.so"
    kernels = read_kernels(library, options.cuobjdump)
    decode, prefill, mma = (
        [k for k in kernels if k["family"] == f"{family}_kernel"] for family in ("decode", "prefill", "prefill_mma")
    )
    count = len(decode) + sum(k["target"] == TARGETS[0] for k in prefill) + len(mma)
    summary = f"{count} kernels, {library.stat().st_size / 1e6:.1f} MB of library."
    if options.write:
        loops = read_loops(library, options.cuobjdump, TARGETS[0])
        text = "\n".join([*make_table(decode, read_plans(options.build / "gpu_lab"), loops), "", summary])
        page = replaced(options.write.read_text(encoding="utf-8"), "kernel", text)
        page = replaced(page, "prefill kernel", "\n".join(make_prefill_table(prefill, loops)))
        page = replaced(page, "prefill on mma kernel", "\n".join(make_mma_table(mma, loops)))
        options.write.write_text(page, encoding="utf-8")
    print(summary)
    found = problems(kernels, library)
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
