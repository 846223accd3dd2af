#!/usr/bin/env python3
"""A whole model in transformers on a GPU: tokens a second at batch 1, a prompt's time, memory, loading.

    python3 bench/python/model.py --out model.json                     # Llama-3-8B's sizes, random weights; 80 GB
    python3 bench/python/model.py --variants bf16,4 --layers 4         # less of it

Each variant is a process of its own. bf16: as transformers makes it; 4, 3, 2: quantized checkpoints of random codes
that are written to --folder (groups of 128 at 4 bits, of 64 below) and loaded by from_pretrained, with stacked layers;
4-single: without stacking; nf4: bitsandbytes' Linear4bit with bf16 arithmetic. They are made one after the other, each
measured before the next; then all compile at the same time, and each is measured again alone.

Decoding: a step of one token is the model with a static cache of --context tokens and the choice of the likeliest
token, in a CUDA graph. "plain": the model as it is; "layers": the layers by torch.compile, which compiles one and has
it serve all, the rest as it is; "compiled": all of it by torch.compile, in one graph, which takes minutes. (nf4: in as
many graphs as it takes.) Time over several steps between two synchronisations, the median of five. Prefill: the model
called plainly on --prompt tokens, the median of several, without a cache. Memory: torch.cuda.max_memory_allocated while
decoding plainly.
"""

import argparse
import json
import os
import pathlib
import queue
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
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=pathlib.Path, default="/tmp/flute-bench")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds after which what there is must do")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run(args.child, args)
        return
    end = time.monotonic() + args.deadline
    children = [Child(variant, end) for variant in args.variants.split(",")]
    try:
        for child in children:
            child.until("imported")
        for child in children:
            child.tell("make")
            child.until("made")
            report(children, args)
        for way in ("layers", "compiled"):
            for child in children:
                child.tell("compile")
            for child in children:
                child.until(way)
            for child in children:
                child.tell("measure")
                child.until(way + "-measured")
                report(children, args)
    finally:
        for child in children:
            child.process.kill()


class Child:
    """A variant's process. It answers a stage's name with JSON of what it knows by then."""

    def __init__(self, variant, end):
        command = [sys.executable, __file__, *sys.argv[1:], "--child", variant]
        environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4"}
        self.variant, self.result, self._began, self._end = variant, {}, time.monotonic(), end
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def tell(self, word):
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has failed, and said so

    def until(self, stage):
        """Waits for it, unless the process ends or the deadline comes."""
        while True:
            try:
                line = self._lines.get(timeout=max(0, self._end - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                self._lines.put(None)  # for whatever is asked next
                print(f"{self.variant}: {stage}: did not come", flush=True)
                return
            found, _, text = line.partition(" ")
            if found == stage:
                self.result = json.loads(text)
                seconds = time.monotonic() - self._began
                print(f"{self.variant}: {stage} after {seconds:.1f} s {text.strip()}", flush=True)
                return


def report(children, args):
    results = {child.variant: child.result for child in children}
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    keys = {"plain_ms": "plain", "layers_ms": "layers", "compiled_ms": "compiled", "prefill_ms": "prefill"}
    print(
        "variant   "
        + "".join(f"{name + (' ms' if name == 'prefill' else ' tok/s'):>15s} x bf16" for name in keys.values())
    )
    base = results.get("bf16", {})
    for variant, one in results.items():
        line = f"{variant:10s}"
        for key in keys:
            value = one.get(key)
            shown = "-" if value is None else f"{value if key == 'prefill_ms' else 1000 / value:.1f}"
            ratio = f"{base[key] / value:.2f}" if value and base.get(key) else "-"
            line += f"{shown:>15s} {ratio:>6s}"
        print(line, flush=True)


def run(variant, args):
    """A child: goes on to the next stage when it is told to."""
    import torch
    import transformers  # noqa: F401 - takes seconds

    result = {}

    def reached(stage):
        print(stage, json.dumps(result), flush=True)
        if not sys.stdin.readline():
            raise SystemExit

    torch.manual_seed(0)
    folder = checkpoint(variant, args, int(variant[0])) if variant[0].isdigit() else None
    reached("imported")
    model = made(variant, folder, args, result).eval()
    with torch.inference_mode():
        result["model_gb"] = allocated(args)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result["plain_ms"], *result["plain_range_ms"] = Decoding(model, args).times()
        result["decode_gb"] = torch.cuda.max_memory_allocated() / 1e9 if args.device == "cuda" else 0
        result["prefill_ms"] = prefill(model, args)
        reached("made")
        fullgraph = variant != "nf4"
        for way in ("layers", "compiled"):
            if way == "layers":
                with CompiledLayers(model, fullgraph):
                    decoding = Decoding(model, args)
            else:
                decoding = Decoding(model, args, lambda step: torch.compile(step, fullgraph=fullgraph))
            reached(way)
            result[way + "_ms"], *result[way + "_range_ms"] = decoding.times()
            reached(way + "-measured")


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


class CompiledLayers:
    """A model's layers compiled within a scope. They are all the same to the compiler: each is given its own part of
    the cache, and so has no use for its number."""

    def __init__(self, model, fullgraph):
        self._layers, self._plain, self._fullgraph = model.model.layers, list(model.model.layers), fullgraph

    def __enter__(self):
        import torch

        class Part:
            def __init__(self, cache):
                self.cache = cache

            def update(self, keys, values, _):
                return self.cache.update(keys, values)

        class Layer(torch.nn.Module):
            def __init__(self, index, layer, fullgraph):
                super().__init__()
                self.index, self.plain, self.compiled = index, layer, torch.compile(layer, fullgraph=fullgraph)

            def forward(self, hidden, past_key_values, **rest):
                layer = self.plain if hidden.shape[1] > 1 else self.compiled  # the prompt fills the cache
                return layer(hidden, past_key_values=Part(past_key_values.layers[self.index]), **rest)

        for index, layer in enumerate(self._plain):
            layer.self_attn.layer_idx = 0
            self._layers[index] = Layer(index, layer, self._fullgraph)

    def __exit__(self, *_):
        for index, layer in enumerate(self._plain):
            layer.self_attn.layer_idx = index
            self._layers[index] = layer


class Decoding:
    """One step after another from a static cache, as a CUDA graph. `made_of`: what makes the step of the plain one."""

    def __init__(self, model, args, made_of=lambda step: step):
        import torch
        import transformers

        self.args = args
        cache = transformers.StaticCache(config=model.config, max_cache_len=args.context)
        ids = torch.arange(16, device=args.device)[None]
        self.token = model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

        def one(token):
            return model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

        step = made_of(one)
        if args.device != "cuda":  # to try the script: without a graph
            self.step = lambda: self.token.copy_(step(self.token))
            self.step()
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # the first compiles
                self.token.copy_(step(self.token))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.token.copy_(step(self.token))
        self.step = graph.replay

    def times(self):
        import torch

        found = []
        for _ in range(6):
            wait(torch, self.args)
            began = time.perf_counter()
            for _ in range(self.args.steps // 5):
                self.step()
            wait(torch, self.args)
            found.append((time.perf_counter() - began) / (self.args.steps // 5) * 1e3)
        return statistics.median(found[1:]), min(found[1:]), max(found[1:])


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


if __name__ == "__main__":
    main()
