"""NF4 with fp32 scales against bitsandbytes on the CPU: the same codes and scales, but for what is named below.

    pip install bitsandbytes torch numpy safetensors
    python tests/oracle/check_bitsandbytes.py [--program build/flute] [--rows 4096] [--seed S]

Two known differences are counted and must explain every code that differs:
- bitsandbytes multiplies with 1 / absmax and rounds the borders between values to fp32, where docs/format.md divides
  and takes the nearest value. Quotients within a rounding or two of a border may come out on its other side: about 1
  weight in 10 million.
- It raises absmax to 1e-38 before it divides, so that groups of nothing but subnormals get codes near zero.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from bitsandbytes.functional import get_4bit_type, quantize_4bit
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import format_reader  # noqa: E402

K, GROUP = 1024, 64


def matrices(rng, rows):
    """Yields (kind, float32 weights, the dtype to store them in)."""
    normal = rng.standard_normal((rows, K)).astype(np.float32)
    few = rng.standard_normal((256, K)).astype(np.float32)
    some = rng.random(few.shape) < 0.2
    groups = few.reshape(-1, GROUP).copy()
    groups[rng.random(len(groups)) < 0.3] = 0
    yield "normal", normal, torch.float32
    yield "small", normal * np.float32(0.02), torch.bfloat16
    yield "student", rng.standard_t(3, (rows, K)).astype(np.float32), torch.float32
    yield "half", few, torch.float16
    yield "zeros", np.where(some, 0, few).astype(np.float32), torch.float32
    yield "zero groups", groups.reshape(few.shape), torch.float32
    yield "all zero", np.zeros((2, K), np.float32), torch.float32
    yield "subnormals", np.where(some, few * np.float32(1e-40), few), torch.float32
    yield "only subnormals", few * np.float32(1e-40), torch.float32
    yield "tiny", few * np.float32(1e-37), torch.float32
    yield "huge", np.clip(few.astype(np.float64) * 1e38, -3.4e38, 3.4e38).astype(np.float32), torch.float32
    yield "mixed", few * np.exp2(rng.integers(-120, 120, few.shape)).astype(np.float32), torch.float32
    grid = np.round(few * 16) / 16
    yield "grid", grid.astype(np.float32), torch.float32


def is_at_border(weight, absmax, codebook, ours, theirs):
    """Are the codes neighbours, and w / absmax within four fp32 roundings of the middle of their values?"""
    table = codebook.astype(np.float64)
    middle = (table[ours] + table[theirs]) / 2
    t = weight.astype(np.float64) / np.where(absmax == 0, 1, absmax)[:, None]
    return (np.abs(ours - theirs) == 1) & (np.abs(t - middle) <= 4 * 2.0**-24 * np.abs(middle))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=str(ROOT / "build" / "flute"))
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 2**32))
    options = parser.parse_args()
    print(f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}, seed {options.seed}")
    rng = np.random.default_rng(options.seed)

    tensors, kinds = {}, {}
    for i, (kind, weight, dtype) in enumerate(matrices(rng, options.rows)):
        name = f"model.layers.{i}.mlp.down_proj.weight"
        tensors[name], kinds[name] = torch.from_numpy(weight).to(dtype), kind
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        source.mkdir()
        save_file(tensors, source / "model.safetensors")
        (source / "config.json").write_text(json.dumps({"model_type": "some"}))
        options_nf4 = ["--bits", "4", "--codebook", "nf", "--group-size", str(GROUP), "--scale-dtype", "fp32"]
        subprocess.run([options.program, "quantize", source, target, *options_nf4], check=True)
        written = format_reader.read_safetensors(target / "model.safetensors")
        for name, weight in tensors.items():
            codebook, scale = written[f"{name}_codebook"], written[f"{name}_scale"]
            failed |= not np.array_equal(codebook, get_4bit_type("nf4", device="cpu").numpy())
            ours = format_reader.unpack(written[f"{name}_packed"], 4).reshape(-1, GROUP)
            packed, state = quantize_4bit(weight, blocksize=GROUP, quant_type="nf4")
            pairs = packed.numpy().reshape(-1)
            theirs = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1, GROUP).astype(np.int64)
            absmax = state.absmax.numpy()
            differ = ours != theirs
            subnormal = (absmax > 0) & (absmax < np.float32(1e-38))
            at_border = is_at_border(weight.float().numpy().reshape(-1, GROUP), absmax, codebook, ours, theirs)
            unexplained = np.count_nonzero(differ & ~at_border & ~subnormal[:, None])
            scales = np.count_nonzero(scale.reshape(-1).view(np.uint32) != absmax.view(np.uint32))
            print(
                f"{kinds[name]}: {ours.size} weights, {scales} scales and {unexplained} codes differ, "
                f"{np.count_nonzero(differ & at_border)} at a border, {np.count_nonzero(subnormal)} subnormal groups"
            )
            failed |= scales + unexplained > 0
    print("FAILED" if failed else "equal but for the differences known and counted")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
