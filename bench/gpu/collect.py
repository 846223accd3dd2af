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
    r"|sm__pipe_tensor_op_hmma_cycles_active\.avg\.pct_of_peak_sustained_active|sm__inst_executed_pipe_(?:alu|lsu)\.avg\.pct_of_peak_sustained_active"
    r"|l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld\.sum|sm__inst_executed\.avg\.per_cycle_active"
    r"|smsp__average_warps_issue_stalled_\w+_per_issue_active\.ratio)\s+(\S*)\s+([\d.,]+)\s*$"
)


def text_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def main():
    work, out, command = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    profiles = []
    for file in sorted(work.glob("profile_*.txt")):
        lines = file.read_text(encoding="utf-8").splitlines()
        counters = {}
        for line in lines:
            match = COUNTERS.match(line)
            if match:
                counters[match.group(1)] = float(match.group(3).replace(",", ""))
        profiles.append({"case": lines[-1].removeprefix("case "), "counters": counters})
    result = {
        "device": text_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "driver": text_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        # COMMIT: where the measured program was built, if not from this checkout.
        "commit": os.environ.get("COMMIT") or text_of("git", "rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "check": json.loads((work / "check.json").read_text(encoding="utf-8").splitlines()[-1]),
        "profiles": profiles,
        "cases": json.loads((work / "mma.json").read_text(encoding="utf-8"))
        + json.loads((work / "time.json").read_text(encoding="utf-8")),
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
