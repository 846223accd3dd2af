#!/usr/bin/env python3
"""Times FLUTE beside cuBLAS and other weight-only kernels on this machine's GPU, in one process; see README.md.

compare.py --library build/libflute.so --out bench/results/peers-h100.json
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import shlex
import subprocess
import sys

import contestants
import flute_library
import torch
from measure import DEVICE, REPETITIONS, DenseWeights, QuantizedWeights, relative_error, time_launches
from table import tables

LLAMA = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
LLAMA += [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)]
OTHERS = [(1024, 4096), (14336, 4096)]  # Llama-3-8B, not fused
OTHERS += [(5120, 8192), (8192, 4096), (28672, 8192), (8192, 14336)]  # Llama-3-70B on two cards
OTHERS += [(2560, 8192), (14336, 8192), (8192, 2048), (8192, 7168)]  # and on four
OTHERS += [(8192, 3584), (3584, 4096), (28672, 3584), (3584, 14336)]  # Gemma-2-9B
TOKENS = [1, 2, 4, 8, 16, 24, 32, 64]
FORMATS = [(4, 128), (4, 64), (3, 128), (2, 128)]
FINALISTS = 2


def parse_arguments():
    def pairs(separator):
        return lambda text: [tuple(int(part) for part in item.split(separator)) for item in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True, help="libflute.so, built with CUDA")
    parser.add_argument("--out", type=pathlib.Path, help="write every time to this JSON file")
    parser.add_argument("--shapes", type=pairs("x"), default=LLAMA, help="NxK,... (default: Llama-3-8B, -70B, fused)")
    parser.add_argument("--all-shapes", action="store_true", help="Gemma-2-9B, unfused and tensor-parallel shapes too")
    parser.add_argument("--tokens", type=lambda text: [int(m) for m in text.split(",")], default=TOKENS, help="M,M,...")
    parser.add_argument("--formats", type=pairs(":"), default=FORMATS, help="BITS:GROUP,... (default: 4:128,4:64,...)")
    arguments = parser.parse_args()
    if arguments.all_shapes:
        arguments.shapes = LLAMA + OTHERS
    return arguments


def find_contestants(library, arguments):
    """Those that are installed, and {name: why not} of the others."""
    found = [contestants.Cublas(), contestants.Flute(library, True), contestants.Flute(library, False)]
    left_out = {}
    others = {
        "Humming": lambda: contestants.Humming(arguments.shapes, arguments.formats, arguments.tokens),
        "Marlin": contestants.Marlin,
        "Machete": contestants.Machete,
        "bitsandbytes NF4": contestants.BitsAndBytes,
    }
    for name, make in others.items():
        try:
            found.append(make())
        except Exception as error:  # as below
            left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"left out: {name}: {left_out[name]}", file=sys.stderr)
    # What Humming compiles meanwhile it waits for when its turn comes: last.
    return sorted(found, key=lambda peer: isinstance(peer, contestants.Humming)), left_out


class Comparison:
    """Rows of results, and in words what did not work."""

    def __init__(self, tokens):
        self.rows, self.failures = [], []
        self._tokens, self._stream = tokens, torch.cuda.Stream()

    def measure(self, weights, peers):
        x = torch.empty((max(self._tokens), weights.k), dtype=torch.float16, device=DEVICE).uniform_(-1, 1)
        products = {}
        for peer in peers:
            table = peer.table(weights.bits)
            key = tuple(table.tolist())
            if key not in products:
                products[key] = weights.product(x, table)
            try:
                variants = peer.prepare(weights)
            except Exception as problem:  # whatever a foreign package raises, the others are measured
                self._note(peer, weights, problem)
                continue
            torch.cuda.synchronize()
            for m in self._tokens:
                self._add_fastest(peer, weights, variants, x[:m], products[key][:m])
        torch.cuda.empty_cache()

    def _add_fastest(self, peer, weights, variants, x, expected):
        found = []
        for variant, launch in variants.items():
            try:
                error = self._error(launch, x, expected)
                if not error <= peer.tolerance:  # NaN is wrong, too
                    raise RuntimeError(f"relative error: expected up to {peer.tolerance}, found {error:.3g}")
                # Of many only the fastest are measured to the end.
                repetitions = 1 if len(variants) > FINALISTS else REPETITIONS
                found.append((*time_launches(launch, x, weights, self._stream, repetitions), error, variant))
            except Exception as problem:
                self._note(peer, weights, f"m {len(x)} {variant}: {problem}")
        if len(variants) > FINALISTS:
            finalists = {variant: variants[variant] for *_, variant in sorted(found)[:FINALISTS]}
            if finalists:
                self._add_fastest(peer, weights, finalists, x, expected)
        elif found:
            middle, low, high, error, variant = min(found)
            row = {"peer": peer.name, "bits": weights.bits, "group": weights.group, "n": weights.n, "k": weights.k}
            row |= {"m": len(x), "us": round(middle, 3), "low_us": round(low, 3), "high_us": round(high, 3)}
            row |= {"error": float(f"{error:.3g}")}
            self.rows.append(row | ({"variant": variant} if variant else {}))

    def _error(self, launch, x, expected):
        with torch.cuda.stream(self._stream):
            y = launch(0, x)
        self._stream.synchronize()
        return relative_error(y, expected)

    def _note(self, peer, weights, problem):
        text = f"{peer.name}, {weights.bits} bits, {weights.n} x {weights.k}: {problem}".splitlines()[0]
        self.failures.append(text)
        print(f"failed: {text}", file=sys.stderr)


def text_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main():
    arguments = parse_arguments()
    library = flute_library.Library(arguments.library)
    torch.cuda.set_device(DEVICE)
    torch.manual_seed(seed := torch.seed() % 2**32)
    peers, left_out = find_contestants(library, arguments)
    comparison = Comparison(arguments.tokens)
    try:
        for n, k in arguments.shapes:
            comparison.measure(DenseWeights(n, k), peers[:1])
            for bits, group in arguments.formats:
                those = [peer for peer in peers[1:] if peer.formats is None or (bits, group) in peer.formats]
                comparison.measure(QuantizedWeights(n, k, bits, group), those)
    except KeyboardInterrupt:  # what was measured is reported
        comparison.failures.append("interrupted")
    result = {
        "device": torch.cuda.get_device_name(DEVICE),
        "driver": text_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        # COMMIT: where the measured library was built, if not from this checkout.
        "commit": os.environ.get("COMMIT") or text_of("git", "rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "seed": seed,
        "versions": {"flute": library.version(), "cuda": torch.version.cuda}
        | {name: version(name) for name in ("torch", "vllm", "humming-kernels", "bitsandbytes")},
        "left_out": left_out,
        "failures": comparison.failures,
    }
    if arguments.out:
        lines = ",\n".join("  " + json.dumps(row) for row in comparison.rows)
        arguments.out.write_text(json.dumps(result, indent=1)[:-2] + ',\n "rows": [\n' + lines + "\n ]\n}\n")
    print(tables(comparison.rows))
    return 1 if any(failure.startswith("FLUTE") for failure in comparison.failures) else 0


if __name__ == "__main__":
    sys.exit(main())
