#!/usr/bin/env python3
"""A whole model in transformers on a GPU: tokens a second at batch 1, a prompt's time, memory, loading.

    python3 bench/python/model.py --out model.json                     # Llama-3-8B's sizes, random weights; 80 GB
    python3 bench/python/model.py --variants bf16,4 --layers 4         # less of it

Each variant is a process of its own. They load one after the other, compile at the same time, and are then measured one
after the other, alone on the card. bf16: as transformers makes it; 4, 3, 2: quantized checkpoints of random codes that
are written to --folder (groups of 128 at 4 bits, of 64 below) and loaded by from_pretrained, with stacked layers;
4-single: without stacking; nf4: bitsandbytes' Linear4bit with bf16 arithmetic.

Decoding: a static cache of --context tokens, one step (the model and the choice of the likeliest token) compiled as one
graph with mode="reduce-overhead"; the median time of steps between two synchronisations, and of generate() with
cache_implementation="static", which adds its own work on the host. Prefill: the model called plainly on --prompt
tokens, the median of several, without a cache. Memory: torch.cuda.max_memory_allocated during decoding.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time

GROUP_SIZES = {4: 128, 3: 64, 2: 64}
CHECKPOINT = pathlib.Path(__file__).parent.parent / "make_checkpoint.py"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="bf16,4,3,nf4")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--context", type=int, default=1024, help="length of the static cache")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prefill")
    parser.add_argument("--generate", action="store_true", help="generate() too")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=pathlib.Path, default="/tmp/flute-bench")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run(args.child, args)
        return
    results = {}
    children = {variant: start(variant) for variant in args.variants.split(",")}
    for child in children.values():
        until(child, "imported")
    for child in children.values():
        tell(child, "make")
        until(child, "made")
    for child in children.values():
        tell(child, "compile")
    for child in children.values():
        until(child, "ready")
    for variant, child in children.items():
        tell(child, "measure")
        answer = child.stdout.readline()
        child.stdin.close()
        if child.wait() != 0 or not answer:
            print(f"{variant}: failed with {child.returncode}: {answer}", flush=True)
            continue
        results[variant] = json.loads(answer)
        print(variant, json.dumps(results[variant]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    report(results)


def tell(child, word):
    """Nothing, where it has ended."""
    try:
        child.stdin.write(word + "\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass


def until(child, word):
    """Its own lines are JSON and these words alone."""
    for line in child.stdout:
        if line == word + "\n":
            return


def start(variant):
    command = [sys.executable, __file__, *sys.argv[1:], "--child", variant]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def report(results):
    print("\nvariant   tokens/s   x bf16  generate   x bf16  prefill ms   x bf16  decoding GB  loading GB/s")
    base = results.get("bf16")
    for variant, one in results.items():
        columns = []
        for key, faster in (("step_ms", True), ("generate_ms", True), ("prefill_ms", False)):
            value = one.get(key)
            ratio = f"{base[key] / value:8.2f}" if base and value and base.get(key) else "       -"
            shown = "         -" if value is None else f"{1000 / value if faster else value:10.1f}"
            columns.append(f"{shown} {ratio}")
        speed = one["load"]["gb_per_s"] if "load" in one else float("nan")
        print(f"{variant:9s}{' '.join(columns)} {one['decode_gb']:12.2f} {speed:13.2f}", flush=True)


def run(variant, args):
    """A child: makes the model, compiles, measures, each when it is told to."""
    import torch
    import transformers  # noqa: F401 - takes seconds

    began = time.perf_counter()

    def reached(stage):
        print(f"{variant}: {stage} after {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        print(stage, flush=True)
        sys.stdin.readline()

    torch.manual_seed(0)
    result = {"variant": variant}
    folder = checkpoint(variant, args, int(variant[0])) if variant[0].isdigit() else None
    reached("imported")
    model = made(variant, folder, args, result).eval()
    result["model_gb"] = allocated(args)
    reached("made")
    with torch.inference_mode():
        decoding = Decoding(model, args, fullgraph=variant != "nf4")
        for _ in range(4):  # the first compiles, the next records
            decoding.step()
        if args.generate:
            generate(model, args)
        reached("ready")
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result["step_ms"], result["step_low_ms"], result["step_high_ms"] = decoding.times()
        result["decode_gb"] = torch.cuda.max_memory_allocated() / 1e9 if args.device == "cuda" else 0
        result["prefill_ms"] = prefill(model, args)
        if args.generate:
            result["generate_ms"] = generate(model, args)
    print(json.dumps(result), flush=True)


def allocated(args):
    import torch

    return torch.cuda.memory_allocated() / 1e9 if args.device == "cuda" else 0


def checkpoint(variant, args, quantized):
    """A folder of random weights."""
    folder = args.folder / variant
    command = [sys.executable, str(CHECKPOINT), str(folder), "--layers", str(args.layers)]
    if args.tiny:
        command.append("--tiny")
    if quantized:
        command += ["--bits", str(quantized), "--group-size", str(64 if args.tiny else GROUP_SIZES[quantized])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def made(variant, folder, args, result):
    import torch
    import transformers

    if variant[0].isdigit():
        import flute
        import flute.transformers

        model, result["load"] = loaded(folder, args)
        if variant.endswith("-single"):
            for name, module in list(model.named_modules()):
                if isinstance(module, flute.Linear):
                    q = module.quantized.to("cpu").to(args.device, torch.bfloat16)
                    model.set_submodule(name, flute.Linear(q))
        return model
    config = transformers.AutoConfig.for_model("llama", **LLAMA | {"num_hidden_layers": args.layers})
    if args.tiny:
        small = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 512, "num_attention_heads": 4}
        config = transformers.AutoConfig.for_model(
            "llama", **LLAMA | small | {"num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
        )
    with torch.device(args.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if variant == "nf4":
        to_nf4(model)
    elif variant != "bf16":
        raise SystemExit(f"variant: expected bf16, 4, 3, 2, 4-single or nf4, found {variant}")
    return model


LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def to_nf4(model):
    """bitsandbytes as its users have it: NF4 in groups of 64, fp32 scales, arithmetic in bf16."""
    import bitsandbytes as bnb
    import torch

    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or name == "lm_head":
            continue
        sizes, options = (module.in_features, module.out_features), {"bias": False, "quant_type": "nf4"}
        layer = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.bfloat16, device="meta", **options)
        layer.weight = bnb.nn.Params4bit(
            module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=False
        )
        model.set_submodule(name, layer.to(module.weight.device))
    torch.cuda.empty_cache()


def loaded(folder, args):
    """The model, and how it was loaded: all files are in the page cache, having just been written."""
    import torch
    import transformers

    if args.device == "cuda":
        import flute

        # What a process does once: the context and the kernels.
        flute.quantize(torch.zeros(64, 64).numpy()).to("cuda", torch.bfloat16)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = allocated(args)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with AnonymousPeak() as host:
        began = time.perf_counter()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=args.device)
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    figures = {"file_gb": size / 1e9, "seconds": seconds, "gb_per_s": size / 1e9 / seconds}
    figures["largest_shard_gb"] = max(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    figures["host_peak_gb"] = host.peak
    if args.device == "cuda":
        figures["gpu_final_gb"] = allocated(args) - before
        figures["gpu_peak_over_final"] = (torch.cuda.max_memory_allocated() / 1e9 - before) / figures["gpu_final_gb"]
        figures["gpu_reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    return model, figures


class AnonymousPeak:
    """The most that the process's anonymous memory (mapped files are not in it) grew by within a scope, GB."""

    def __enter__(self):
        self.peak, self._first, self._over = 0.0, self._now(), False
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over = True
        self._thread.join()

    def _watch(self):
        while not self._over:
            self.peak = max(self.peak, self._now() - self._first)
            time.sleep(0.005)

    @staticmethod
    def _now():
        text = pathlib.Path("/proc/self/status").read_text()
        return int(text.partition("RssAnon:")[2].split()[0]) / 1e6


class Decoding:
    """One step after another from a static cache."""

    def __init__(self, model, args, fullgraph):
        import torch
        import transformers

        self.args = args
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=args.context)
        ids = torch.arange(16, device=args.device)[None]
        logits = model(ids, past_key_values=self.cache, use_cache=True).logits
        self.token = logits[:, -1:].argmax(-1)

        def one(token):
            return model(token, past_key_values=self.cache, use_cache=True).logits[:, -1:].argmax(-1)

        mode = "reduce-overhead" if args.device == "cuda" else "default"
        self.compiled = torch.compile(one, fullgraph=fullgraph, mode=mode)

    def step(self):
        import torch

        torch.compiler.cudagraph_mark_step_begin()
        self.token = self.compiled(self.token.clone())

    def times(self):
        import torch

        found = []
        for _ in range(5):
            wait(torch, self.args)
            began = time.perf_counter()
            for _ in range(self.args.steps // 5):
                self.step()
            wait(torch, self.args)
            found.append((time.perf_counter() - began) / (self.args.steps // 5) * 1e3)
        return statistics.median(found), min(found), max(found)


def wait(torch, args):
    if args.device == "cuda":
        torch.cuda.synchronize()


def prefill(model, args):
    import torch

    ids = (torch.arange(args.prompt, device=args.device) * 7 % 500)[None]
    found = []
    for _ in range(8):
        wait(torch, args)
        began = time.perf_counter()
        model(ids, use_cache=False, logits_to_keep=1)
        wait(torch, args)
        found.append((time.perf_counter() - began) * 1e3)
    return statistics.median(found[3:])


class Stamps:
    """A streamer that notes when each token came."""

    def __init__(self):
        self.times = []

    def put(self, _):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def generate(model, args):
    import torch

    model.generation_config.eos_token_id = None
    ids = torch.arange(16, device=args.device)[None]
    options = {"do_sample": False, "max_new_tokens": 64, "cache_implementation": "static", "pad_token_id": 0}
    stamps = Stamps()
    model.generate(ids, attention_mask=torch.ones_like(ids), streamer=stamps, **options)
    steps = [later - earlier for earlier, later in zip(stamps.times[8:], stamps.times[9:], strict=False)]
    return statistics.median(steps) * 1e3


if __name__ == "__main__":
    main()
