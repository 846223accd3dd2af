#!/usr/bin/env python3
"""What a call costs the host: F.linear, flute.gemm, flute.Linear and bitsandbytes' Linear4bit on the same sizes.

    python3 bench/python/overhead.py --out overhead.json
    python3 bench/python/overhead.py --device cpu --size 256      # the multiply itself is in it

Calls are made in bursts, on a GPU without waiting for it; the time of a burst until its last call has returned, divided
by its calls, least of many bursts. Short bursts, and a wait after each, keep the device's queue from filling up.
"""

import argparse
import json
import pathlib
import time

import flute
import torch


def microseconds(call, device, bursts=30, calls=100):
    found = []
    for _ in range(bursts + 5):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        found.append((time.perf_counter() - began) / calls * 1e6)
    return min(found[5:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--size", type=int, default=4096, help="of a square matrix")
    parser.add_argument("--tokens", default="1,16,17,64,65,256")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if args.device.type == "cuda" else torch.float32
    weight = torch.randn(args.size, args.size) * 0.02
    q = flute.quantize(weight.numpy(), 4, group_size=128)
    if args.device.type == "cuda":
        q = q.to(args.device, dtype)
    layer, plain = flute.Linear(q), weight.to(args.device, dtype)
    calls = {
        "F.linear": lambda x: torch.nn.functional.linear(x, plain),
        "flute.gemm": lambda x: flute.gemm(x, q),
        "flute.Linear": layer,
    }
    try:
        import bitsandbytes as bnb

        theirs = bnb.nn.Linear4bit(args.size, args.size, bias=False, compute_dtype=dtype, quant_type="nf4")
        theirs.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
        calls["bitsandbytes"] = theirs.to(args.device)
    except ImportError:
        print("bitsandbytes is not installed")
    rows = []
    modes = {"inference_mode": torch.inference_mode, "no_grad": torch.no_grad, "enable_grad": torch.enable_grad}
    print("mode            tokens " + "".join(f"{name:>14s}" for name in calls) + "   us a call")
    for mode, scope in modes.items():
        for tokens in map(int, args.tokens.split(",")):
            with scope():
                x = torch.randn(tokens, args.size, device=args.device).to(dtype)
                row = {name: microseconds(lambda call=call, x=x: call(x), args.device) for name, call in calls.items()}
            rows.append({"mode": mode, "tokens": tokens, **row})
            print(f"{mode:15s} {tokens:6d} " + "".join(f"{value:14.1f}" for value in row.values()), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
