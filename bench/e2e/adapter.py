#!/usr/bin/env python3
"""A LoRA adapter to check vLLM with: random, for every linear layer of a quantized checkpoint; and a plain checkpoint
into which it is merged, from which check.py makes the reference.

    adapter.py small-4-bit --adapter small-lora --merged small-merged --program build/flute

W + B A takes the place of every weight W that is quantized, where B A is a tenth as large as W. Needs numpy and
safetensors.
"""

import argparse
import json
import pathlib
import subprocess

import numpy
from safetensors.numpy import load_file, save_file

RANK = 8
SHARE = 0.1  # of the weights' standard deviation


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--adapter", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--merged", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--program", default="flute")
    args = parser.parse_args()
    subprocess.run([args.program, "dequantize", args.model, args.merged, "--dtype", "fp32"], check=True)
    index = json.loads((args.model / "model.safetensors.index.json").read_text())["weight_map"]
    layers = {name.removesuffix(".weight_packed") for name in index if name.endswith(".weight_packed")}
    random, adapter = numpy.random.default_rng(1), {}
    for shard in sorted(args.merged.glob("*.safetensors")):
        tensors = load_file(shard)
        for layer in sorted(layers):
            weight = tensors.get(f"{layer}.weight")
            if weight is None:
                continue
            n, k = weight.shape
            # Elements of B A have the deviation of B's times A's times the root of the rank.
            deviation = SHARE * weight.std() / RANK**0.5
            a = random.standard_normal((RANK, k)).astype(numpy.float16)
            b = (random.standard_normal((n, RANK)) * deviation).astype(numpy.float16)
            adapter[f"base_model.model.{layer}.lora_A.weight"] = a
            adapter[f"base_model.model.{layer}.lora_B.weight"] = b
            tensors[f"{layer}.weight"] = weight + b.astype(numpy.float32) @ a.astype(numpy.float32)
        save_file(tensors, shard, metadata={"format": "pt"})
    args.adapter.mkdir(parents=True, exist_ok=True)
    save_file(adapter, args.adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    config["target_modules"] = sorted({layer.rpartition(".")[2] for layer in layers})
    (args.adapter / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    print(f"{len(adapter) // 2} layers adapted")


if __name__ == "__main__":
    main()
