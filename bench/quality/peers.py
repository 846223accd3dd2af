#!/usr/bin/env python3
"""GPTQ and AWQ as llm-compressor implements them, beside this project's, by perplexity. On a CPU.

    pip install llmcompressor
    bench/quality/peers.py --model FOLDER --calibration TEXT --text TEXT [--bits 4] [--methods gptq awq] --out RESULT

Both get the same windows of the text. llm-compressor's result, weights after rounding, is written as a plain fp32
checkpoint, so that `flute perplexity` measures both. One JSON object a line is added to RESULT.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import torch
from compressed_tensors.quantization import fake_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

try:
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
except ImportError:
    from llmcompressor.modifiers.awq import AWQModifier

    QuantizationModifier = None

if not torch.cuda.is_available():
    torch.Tensor.pin_memory = lambda self, *_: self  # which its AWQ asks for, and PyTorch refuses without a driver

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
WINDOW = 512


def calibration_windows(folder, text, count):
    """What `flute quantize` takes (src/model/calibration_text.cpp)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    eos = config["eos_token_id"]
    ids = []
    for document in text.split("\n\0\n"):
        ids += [config["bos_token_id"]] + tokenizer.encode(document, add_special_tokens=False)
        ids += [eos[0] if isinstance(eos, list) else eos]
    there = len(ids) // WINDOW
    starts = [i * there // count * WINDOW for i in range(count)]
    return Dataset.from_dict(
        {
            "input_ids": [ids[start : start + WINDOW] for start in starts],
            "attention_mask": [[1] * WINDOW for _ in starts],
        }
    )


def scheme(options, symmetric, actorder=None):
    weights = {
        "num_bits": options.bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group",
        "group_size": options.group_size,
        "actorder": actorder,
    }
    return {"group_0": {"targets": ["Linear"], "weights": weights}}


def recipes(options, method, symmetric):
    if method == "gptq":
        groups = scheme(options, symmetric, "static")
        return GPTQModifier(config_groups=groups, ignore=["lm_head"], dampening_frac=0.01)
    groups = scheme(options, symmetric)
    if QuantizationModifier is None:
        return AWQModifier(config_groups=groups, ignore=["lm_head"])
    return [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=["lm_head"])]


def perplexity(options, folder):
    command = [options.flute, "perplexity", folder, options.text, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["perplexity"]


def theirs(options, method, symmetric, target):
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    names = set(model.state_dict())
    text = options.calibration.read_text(encoding="utf-8")
    oneshot(
        model=model,
        dataset=calibration_windows(options.model, text, options.windows),
        recipe=recipes(options, method, symmetric),
        max_seq_length=WINDOW,
        num_calibration_samples=options.windows,
        shuffle_calibration_samples=False,
    )
    for module in model.modules():
        arguments = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if arguments is not None:  # GPTQ leaves rounded weights, AWQ rounds in each call
            point = getattr(module, "weight_zero_point", None)
            module.weight.data = fake_quantize(module.weight, module.weight_scale, point, arguments)
    tied = model.config.tie_word_embeddings
    kept = {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if name in names and not (tied and name == "lm_head.weight")
    }
    target.mkdir()
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    for file in options.model.iterdir():
        if not file.name.startswith("model"):
            shutil.copy(file, target)


def ours(options, method, target):
    command = [options.flute, "quantize", options.model, target, "--method", method, "--codebook", "int"]
    command += ["--bits", options.bits, "--group-size", options.group_size, "--calibration", options.calibration]
    command += ["--calibration-tokens", WINDOW * options.windows]
    if method == "gptq":  # whose scales are absmax / 7 at 4 bits here and absmax / 7.5 there
        largest = 2 ** (options.bits - 1) - 1
        command += ["--clip", largest / (largest + 0.5)]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--calibration", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True, help="text that is predicted")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=["gptq", "awq"], choices=["gptq", "awq"])
    parser.add_argument("--windows", type=int, default=128, help="of 512 tokens to calibrate with")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file that results are added to")
    parser.add_argument("--flute", type=pathlib.Path, default=ROOT / "build/flute", help="the program")
    options = parser.parse_args()
    for method in options.methods:
        runs = {
            "flute int": lambda target, method=method: ours(options, method, target),
            "llm-compressor int": lambda target, method=method: theirs(options, method, True, target),
            "llm-compressor asymmetric": lambda target, method=method: theirs(options, method, False, target),
        }
        for name, quantize in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                target = pathlib.Path(folder) / "quantized"
                begin = time.monotonic()
                quantize(target)
                result = {
                    "model": options.model.name,
                    "method": method,
                    "implementation": name,
                    "bits": options.bits,
                    "group": options.group_size,
                    "windows": options.windows,
                    "seconds": round(time.monotonic() - begin, 1),
                    "perplexity": perplexity(options, target),
                }
                with options.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    sys.exit(main())
