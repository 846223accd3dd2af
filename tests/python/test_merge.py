"""bench/e2e/merge.py: rows of several series become one file and a table whose speed-ups are of the same series."""

import json
import subprocess
import sys

import checkpoints

MERGE = checkpoints.ROOT / "bench" / "e2e" / "merge.py"


def row(engine, decode, first, **more):
    common = {"model": "m", "tensor_parallel": 1, "device": "GPU", "mixed_tokens_per_s": None, "weight_gb": 1.0}
    return {"engine": engine, "decode_ms": decode, "first_token_ms": first, **common, **more}


def merged(tmp_path, *rows):
    paths = []
    for number, one in enumerate(rows):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(one))
    command = [sys.executable, MERGE, *paths, "--json", tmp_path / "all.json"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_each_row_is_compared_with_the_unquantized_one_of_its_series(tmp_path):
    rows = [
        row("unquantized", {"1": 6.0, "16": 8.0}, 50.0),
        row("flute-4", {"1": 3.0}, 100.0),
        row("unquantized", {"1": 9.0, "16": 8.0}, 50.0),
        row("marlin", {"1": 3.0, "16": 4.0}, None),
    ]
    table = merged(tmp_path, *rows)
    assert "| flute-4 | 3.00 (2.00x) |  | 100.00 (0.50x) |" in table
    assert "| marlin | 3.00 (3.00x) | 4.00 (2.00x) |  |" in table
    assert json.loads((tmp_path / "all.json").read_text())["rows"] == rows
    assert merged(tmp_path, json.loads((tmp_path / "all.json").read_text())) == table


def test_models_and_numbers_of_gpus_are_kept_apart(tmp_path):
    table = merged(tmp_path, row("unquantized", {"1": 6.0}, 1.0), row("flute-4", {"1": 3.0}, 1.0, tensor_parallel=2))
    assert "m, 1 x GPU" in table and "m, 2 x GPU" in table
    assert "| flute-4 | 3.00 | 1.00 |" in table


def test_a_step_is_divided_by_what_its_kernels_do(tmp_path):
    kernels = [["flute::decode<4>", 128, 2000.4], ["nvjet_hsh_64x8", 1, 360], ["flash_fwd_kernel", 32, 200]]
    kernels += [["triton_red_fused_rms_norm", 64, 100], ["triton_poi_fused_mul_silu", 32, 50]]
    steps = {"1": {"busy_us": 2600, "kernels": kernels}}
    table = merged(tmp_path, row("flute-4", {"1": 2.85}, 1.0, steps=steps, peak_gb=6.5))
    assert "| flute-4 | 1 | 2000 | 200 | 360 | 150 | 2600 | 2850 |" in table
    assert "| 1.00 | 6.50 |" in table
