#!/usr/bin/env python3
"""Puts what run.sh measured into one JSON: collect.py WORK_FOLDER OUT.json COMMAND."""

import datetime
import json
import os
import pathlib
import re
import subprocess
import sys

COUNTERS = re.compile(
    r"^\s*(gpu__time_duration\.sum|dram__throughput\.avg\.pct_of_peak_sustained_elapsed|smsp__inst_executed\.sum"
    r"|sm__(?:inst_executed_)?pipe_tensor\w*\.avg\.pct_of_peak_sustained_active|sm__inst_executed_pipe_(?:alu|lsu)\.avg\.pct_of_peak_sustained_active"
    r"|l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld\.sum|sm__inst_executed\.avg\.per_cycle_active"
    r"|smsp__average_warps_issue_stalled_\w+_per_issue_active\.ratio)\s+(\S*)\s+([\d.,]+)\s*$"
)
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
INSTANCES = re.compile(r'\{"instances": (\d+), "of": (\d+)')
CHECKS = ("check", "check_shapes", "check_a6000_plans", "check_target_80")


def text_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def check_result(work, name):
    """What `lab check` printed; what it complained of, if it did; nothing where it was not run."""
    out, errors = work / f"{name}.json", work / f"{name}.err"
    if not out.exists():
        return None
    if text := out.read_text(encoding="utf-8"):
        return json.loads(text)
    return {"wrong": errors.read_text(encoding="utf-8").strip()}


def measured(path):
    """The cases of a file that `lab` printed, which ends where its time was up."""
    text = path.read_text(encoding="utf-8").rstrip() if path.exists() else ""
    if not text:
        return []
    return json.loads(text if text.endswith("]") else text + "]")


def sanitizer_results(work):
    """For each tool: kernels run of how many, errors; None where a part did not finish."""
    results = {}
    for file in sorted(work.glob("sanitizer_*.txt")):
        tool, text = file.stem.split("_")[1], file.read_text(encoding="utf-8", errors="replace")
        errors, instances = SUMMARY.search(text), INSTANCES.search(text)
        result = results.setdefault(tool, {"kernels": 0, "of": 0, "errors": 0})
        if errors is None or instances is None:
            result["errors"] = None
            print(f"{file.name}: {' | '.join(text.splitlines()[-3:])}", file=sys.stderr)
            continue
        result["kernels"] += int(instances.group(1))
        result["of"] = int(instances.group(2))
        if result["errors"] is not None:
            result["errors"] += int(errors.group(1))
    return results


def profile_results(work):
    profiles = []
    for file in sorted(work.glob("profile_*.txt")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        matches = filter(None, map(COUNTERS.match, lines))
        counters = {match.group(1): float(match.group(3).replace(",", "")) for match in matches}
        profiles.append({"case": lines[-1].removeprefix("case "), "counters": counters})
    return profiles


def main():
    work, out, command = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    result = {
        "device": text_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "driver": text_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        # COMMIT: where the measured program was built, if not from this checkout.
        "commit": os.environ.get("COMMIT") or text_of("git", "rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        **{name: check_result(work, name) for name in CHECKS},
        "sanitizers": sanitizer_results(work),
        "profiles": profile_results(work),
        "cases": measured(work / "mma.json") + measured(work / "time.json"),
    }
    pathlib.Path(out).write_text(
        json.dumps({k: v for k, v in result.items() if k != "cases"}, indent=1)[:-2]
        + ',\n "cases": [\n'
        + ",\n".join("  " + json.dumps(case) for case in result["cases"])
        + "\n ]\n}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
