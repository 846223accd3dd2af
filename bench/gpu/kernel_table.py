#!/usr/bin/env python3
"""What each decode kernel takes of a multiprocessor: kernel_table.py BUILD_FOLDER [--write docs/kernels.md]

Registers from BUILD_FOLDER/libflute.so (through cuobjdump, which comes with CUDA), warps and shared memory from the
plans that BUILD_FOLDER/flute prints; no GPU needed. Prints a table, or replaces the one in a Markdown file. Exit code 1
if a kernel spills, uses local memory or holds nothing but a trap, or if the library is too large.
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys

BITS = (4, 3, 2)
TARGETS = ("sm_90a", "sm_80")
ROWS = {8: 7, 16: 5, 32: 4, 64: 4}  # M -> most row groups of a pass (plan.hpp: max_rows)
LARGEST_LIBRARY = 30e6
# Fewer registers than any kernel that multiplies can do with: the compiler has seen that it always traps.
FEWEST_REGISTERS = 32
REGISTERS, WARPS, SHARED = 65536, 64, 228 * 1024  # of a multiprocessor of compute capability 9.0
BEGIN, END = "<!-- kernel table: begin -->", "<!-- kernel table: end -->"

FUNCTION = re.compile(r"Function (\S+):")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
NAME = re.compile(r"\d+([a-z_]+_kernel)I\d+(__half|__nv_bfloat16)((?:Li-?\d+E)+)E")
PLAN = re.compile(
    r"decode: \d+ blocks of (\d+) warps, passes of (\d+) x 16 rows, .* (\d+) x 8 tokens, (\d+) KB of shared memory"
)


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
                    "numbers": tuple(map(int, re.findall(r"Li(-?\d+)E", parts.group(3)))) if parts else (),
                    "registers": registers,
                    "spills": stack > 0 or local > 0,
                }
            )
    return kernels


def problems(kernels, library):
    found = [f"{k['target']} {k['name']}: uses local memory" for k in kernels if k["spills"]]
    traps = [k for k in kernels if k["family"] == "decode_kernel" and k["registers"] < FEWEST_REGISTERS]
    if traps:
        found.append(
            f"{traps[0]['target']}: {len(traps)} kernels have fewer than {FEWEST_REGISTERS} registers, so do nothing, "
            f"the first is {traps[0]['name']}"
        )
    found += [
        f"{library}: no kernels for {target}" for target in TARGETS if target not in {k["target"] for k in kernels}
    ]
    if library.stat().st_size > LARGEST_LIBRARY:
        found.append(f"{library}: expected at most {LARGEST_LIBRARY:.0f} bytes, found {library.stat().st_size}")
    return found


def read_plans(program):
    """(m, row groups of a pass, bits) -> (warps, KB of shared memory), for the plans of an H100."""
    plans = {}
    for m, most in ROWS.items():
        shapes = " ".join(f"--shape {rows * 16 * 132}x8192" for rows in range(1, most + 1))
        words = f"bench --device cuda:99 --plan --json --m {m} --bits 4,3,2 {shapes}"
        output = subprocess.run([program, *words.split()], capture_output=True, text=True, check=True).stdout
        for line in map(json.loads, output.splitlines()):
            match = PLAN.match(line["plan"])
            if not match:
                raise SystemExit(f"kernel_table.py: expected a plan of decode kernels, found '{line['plan']}'")
            warps, rows, _, shared = map(int, match.groups())
            plans[m, rows, line["format"]["bits"]] = warps, shared
    return plans


def resident_warps(registers, warps, shared_kb):
    """Warps that a multiprocessor holds of a kernel; a block takes 1 KB of shared memory for the system."""
    by_registers = REGISTERS // ((registers + 7) // 8 * 8 * 32 * warps)
    return warps * min(by_registers, SHARED // ((shared_kb + 1) * 1024), WARPS // warps)


def most_registers(kernels, target, bits, tiles_m, rows):
    """Of all variants of a kernel: dtypes, scale groups in a unit, units of a step."""
    some = [k for k in kernels if k["target"] == target and k["numbers"][:3] == (bits, tiles_m, rows)]
    if not some:
        raise SystemExit(
            f"kernel_table.py: expected a kernel of {bits} bits, {tiles_m} tiles, {rows} rows for {target}"
        )
    return max(k["registers"] for k in some)


def make_table(kernels, plans):
    lines = [
        "| M | row groups of a pass | warps | registers, sm_90a | registers, sm_80 | shared memory, KB | occupancy |",
        "|---|---|---|---|---|---|---|",
    ]
    for m, rows in sorted({(m, rows) for m, rows, _ in plans}):
        found = [plans[m, rows, bits] for bits in BITS]
        registers = [[most_registers(kernels, target, bits, m // 8, rows) for bits in BITS] for target in TARGETS]
        resident = {resident_warps(count, *plan) for count, plan in zip(registers[0], found, strict=True)}
        cells = [
            f"{m // 2 + 1 if m > 8 else 1}–{m}",
            str(rows),
            " / ".join(sorted({str(warps) for warps, _ in found})),
            *(" / ".join(map(str, counts)) for counts in registers),
            " / ".join(str(shared) for _, shared in found),
            " / ".join(f"{100 * warps / WARPS:.0f} %" for warps in sorted(resident)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path, help="replace the table in this Markdown file")
    parser.add_argument("--cuobjdump", default=shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump")
    options = parser.parse_args()
    library = options.build / "libflute.so"
    kernels = read_kernels(library, options.cuobjdump)
    multiply = [k for k in kernels if k["family"] == "decode_kernel"]
    text = "\n".join(
        [
            *make_table(multiply, read_plans(options.build / "flute")),
            "",
            f"{len(multiply)} kernels, {library.stat().st_size / 1e6:.1f} MB of library.",
        ]
    )
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    else:
        print(text)
    found = problems(kernels, library)
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
