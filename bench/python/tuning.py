#!/usr/bin/env python3
"""Steps of flute.tune on a model of Llama-3-8B's sizes: tokens a second and peak memory on a GPU.

    python3 bench/python/tuning.py --out tuning.json          # bits 4 and 3, with and without --recompute; 80 GB
    python3 bench/python/tuning.py --layers 2 --variants 3    # less of it

Weights and codes are random, made where they are needed: what is measured depends on sizes alone. A variant is the bits
of the codes (groups of 64), with an r behind it: --recompute. After a first step, the median of the others' times, each
between two synchronisations; memory is torch.cuda.max_memory_allocated over all of them.
"""

import argparse
import gc
import json
import pathlib
import statistics
import time

import flute
import numpy as np
import torch
import transformers
from flute._tune_model import TunedModel, train

LLAMA_3_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
TINY = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="4,3,4r")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1024, help="of a step")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds after which no variant is begun")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    begin = time.monotonic()
    result = {"layers": args.layers, "tokens": args.tokens, "window": args.window, "torch": torch.__version__}
    result["device"] = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    result["variants"] = {}
    for variant in args.variants.split(","):
        if time.monotonic() - begin > args.deadline:
            break
        try:
            result["variants"][variant] = measure(variant, args)
        except torch.OutOfMemoryError as error:
            result["variants"][variant] = {"error": str(error).partition(".")[0]}
        print(variant, json.dumps(result["variants"][variant]), f"at {time.monotonic() - begin:.1f} s", flush=True)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def measure(variant, args):
    begin = time.monotonic()
    config = transformers.LlamaConfig(
        **(TINY if args.tiny else LLAMA_3_8B),
        num_hidden_layers=args.layers,
        vocab_size=512 if args.tiny else 128256,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    with torch.device(args.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    bits, of_shape, layers = int(variant.removesuffix("r")), {}, {}
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and name != "lm_head":
            shape = module.out_features, module.in_features
            if shape not in of_shape:
                of_shape[shape] = random_layer(*shape, bits)
            layers[name] = of_shape[shape]
    tuned = TunedModel(layers, model, "tables", variant.endswith("r"))
    synchronize(args)
    made = time.monotonic()
    windows = list(torch.randint(config.vocab_size, (args.steps * args.tokens // args.window, args.window)))
    times = [made]

    def after_step(step, steps, value):
        synchronize(args)
        times.append(time.monotonic())

    train(
        tuned,
        windows,
        steps=args.steps,
        batch=args.tokens // args.window,
        learning_rate=None,
        seed=0,
        progress=after_step,
    )
    steps = [after - before for before, after in zip(times[1:], times[2:], strict=False)]
    found = {
        "seconds_to_make": made - begin,
        "first_step_seconds": times[1] - made,
        "step_seconds": statistics.median(steps),
        "tokens_per_second": args.tokens / statistics.median(steps),
    }
    if args.device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def random_layer(n, k, bits):
    random = np.random.default_rng(n + k)
    codes = random.integers(1 << bits, size=(n, k), dtype=np.uint8)
    scales = random.uniform(0.02, 0.08, (n, k // 64)).astype(np.float16)
    return flute.QuantizedTensor.from_codes(codes, np.linspace(-1, 1, 1 << bits, dtype=np.float32), scales)


def synchronize(args):
    if args.device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
