#!/usr/bin/env python3
"""Measures one model with one way of multiplying in vLLM: decode, first token, a mixed load, memory. Prints JSON.

    measure.py models/llama-3-8b.json                      unquantized
    measure.py models/llama-3-8b.json --engine flute-4
    measure.py models/llama-3-8b.json --engine marlin --batch 1,16,64
    measure.py models/llama-3-70b.json --engine flute-3 --tensor-parallel 2
    measure.py Llama-3-8B-nf4 --engine flute-4             a checkpoint, which says itself how it is quantized

MODEL is a checkpoint folder, or a config.json (or a folder with only that): then the weights are random.

decode_ms[batch]: steady time of a decode step, (time of --new-tokens tokens - time of 1) / (new_tokens - 1), all
requests with prompts of the same length; fewer tokens where the keys and values of so many requests would not fit.
first_token_ms: time of one prompt of --prefill tokens until its first token.
mixed_tokens_per_s: new tokens a second where --mixed requests come at once, with prompts of 32 to 1024 tokens and
answers of 16 to 256. Wall time seen by the caller of `LLM.generate`, scheduler included: medians of --repeat runs.
peak_gb: the most that PyTorch held on one GPU, without the keys' and values' kv_gb: weights, activations, graphs.
steps[batch], with --kernels: kernels of a decode step, and how long the GPU was busy with them.
"""

import argparse
import fcntl
import hashlib
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

BLOCK_LAYERS = [
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ["self_attn.o_proj"],
    ["mlp.gate_proj", "mlp.up_proj"],
    ["mlp.down_proj"],
]
# Without weight files vLLM learns from the names alone what is quantized.
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
GPTQ |= {"checkpoint_format": "gptq", "modules_in_block_to_quantize": BLOCK_LAYERS}

KV_BLOCK = 16  # tokens whose keys and values vLLM keeps together
PROFILED_STEPS = 32
POWERS = [1 << i for i in range(12)]  # batches that have a CUDA graph beside those that are measured


def flute(bits, group_size, head_bits=None):
    config = {"quant_method": "flute", "format_version": 1, "bits": bits, "group_size": group_size}
    if head_bits is None:
        return config | {"modules_to_not_convert": ["lm_head"]}
    return config | {"layers": {"lm_head": {"bits": head_bits}}}


# Of config.json the quantization_config, and vLLM's choice among its own kernels.
ENGINES = {
    "unquantized": (None, "auto"),
    "flute-4": (flute(4, 128), "auto"),
    "flute-3": (flute(3, 64), "auto"),
    "flute-2": (flute(2, 64), "auto"),
    "flute-4-head": (flute(4, 128, head_bits=4), "auto"),
    "flute-3-head": (flute(3, 64, head_bits=4), "auto"),
    "marlin": (GPTQ, "marlin"),
    "machete": (GPTQ, "machete"),
    "humming": (GPTQ, "humming"),
    "bitsandbytes": (None, "auto"),  # quantizes what it loads: needs a checkpoint
}


def model_folder(model, quantization):
    """The folder to load and whether its weights are random. A quantization is written into a copy of config.json."""
    config_file = model if model.is_file() else model / "config.json"
    random_weights = model.is_file() or not any(model.glob("*.safetensors"))
    config = json.loads(config_file.read_text())
    if not random_weights:
        expected, found = (one and one["quant_method"] for one in (quantization, config.get("quantization_config")))
        if expected != found:
            raise SystemExit(f"measure.py: expected a checkpoint of this engine ({expected}), found {found}")
        return model, False
    if quantization:
        config["quantization_config"] = quantization
    text = json.dumps(config)
    # vLLM's compile cache knows a model by its path: the same configuration gets the same path.
    folder = pathlib.Path(tempfile.gettempdir()) / f"e2e-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(text)
    return folder, True


def numbers(text):
    return [int(number) for number in text.split(",")]


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--engine", choices=ENGINES, default="unquantized")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=numbers, default=[1, 4, 16, 64, 256], metavar="BATCH,...")
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--prefill", type=int, default=2048, help="0: leave out")
    parser.add_argument("--mixed", type=int, default=0, help="requests of the mixed load (default: leave out)")
    parser.add_argument(
        "--kernels", type=numbers, default=[], metavar="BATCH,...", help="also: what each kernel takes of a step"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="no torch.compile, no CUDA graphs")
    parser.add_argument("--in-process", action="store_true", help="the engine in this process: for debugging")
    parser.add_argument(
        "--kv-gb", type=float, default=0, help="memory for keys and values (default: 0.85 of the GPU in all)"
    )
    parser.add_argument("--together", type=int, default=1, help="engines that start at once and are measured in turn")
    parser.add_argument("--turns", type=pathlib.Path, help="with --together: a file that these share, empty at first")
    parser.add_argument("--json", type=pathlib.Path, help="write the result here too")
    return parser.parse_args()


class Load:
    """Requests of random tokens, and the time that they take."""

    def __init__(self, llm, repeat):
        self.llm, self.repeat = llm, repeat
        self.config = llm.llm_engine.vllm_config
        self.vocabulary = self.config.model_config.get_vocab_size()
        self.draw = random.Random(0)

    def prompts(self, lengths):
        draw, most = self.draw, self.vocabulary
        return [{"prompt_token_ids": [draw.randrange(10, most) for _ in range(length)]} for length in lengths]

    def run(self, lengths, tokens, **more):
        """Seconds, and vLLM's answers. tokens: of each answer, or one number for all."""
        from vllm import SamplingParams

        counts = tokens if isinstance(tokens, list) else [tokens] * len(lengths)
        options = {"temperature": 0, "ignore_eos": True, "detokenize": False, **more}
        sampling = [SamplingParams(max_tokens=count, **options) for count in counts]
        requests = self.prompts(lengths)
        began = time.perf_counter()
        outputs = self.llm.generate(requests, sampling, use_tqdm=False)
        return time.perf_counter() - began, outputs

    def times(self, lengths, tokens):
        return [self.run(lengths, tokens)[0] for _ in range(self.repeat)]

    def finite(self):
        """Whether log probabilities are numbers."""
        _, outputs = self.run([64, 64], 8, logprobs=5)
        values = [one.logprob for output in outputs for step in output.outputs[0].logprobs for one in step.values()]
        return len(values) > 0 and all(abs(value) < 1e4 for value in values)  # false for NaN

    def decode(self, batch, prompt_len, new_tokens):
        """Milliseconds a step: median, least, most."""
        lengths = [prompt_len] * batch
        self.run(lengths, 16)
        one = statistics.median(self.times(lengths, 1))
        steps = [1e3 * (many - one) / (new_tokens - 1) for many in self.times(lengths, new_tokens)]
        return [round(value, 4) for value in (statistics.median(steps), min(steps), max(steps))]

    def step(self, batch, prompt_len):
        """What the GPU does in a decode step: {"busy_us": ..., "kernels": [[kernel, calls, microseconds]]}.

        Kernels of less than 1 us in all are left out. Those that overlap (dependent launch) are counted whole, and
        their common time once in busy_us.
        """
        import inside_engine

        lengths, found = [prompt_len] * batch, []
        self.run(lengths, 16)
        for tokens in (1, 1 + PROFILED_STEPS):
            self.llm.apply_model(inside_engine.start_profiler)
            self.run(lengths, tokens)
            found.append(self.llm.apply_model(inside_engine.stop_profiler)[0])
        (busy_before, before), (busy, kernels) = found
        steps = []
        for name, (calls, us) in kernels.items():
            less, us_less = before.get(name, (0, 0))
            steps.append([name[:100], (calls - less) / PROFILED_STEPS, (us - us_less) / PROFILED_STEPS])
        steps = [[name, round(calls, 1), round(us, 2)] for name, calls, us in sorted(steps, key=lambda one: -one[2])]
        return {
            "busy_us": round((busy - busy_before) / PROFILED_STEPS, 1),
            "kernels": [one for one in steps if one[2] >= 1],
        }

    def first_token(self, length):
        self.run([length], 1)
        return round(1e3 * statistics.median(self.times([length], 1)), 3)

    def mixed(self, count):
        lengths = [self.draw.randint(32, 1024) for _ in range(count)]
        tokens = [self.draw.randint(16, 256) for _ in range(count)]
        return round(sum(tokens) / statistics.median(self.times(lengths, tokens)), 1)


def wait_for_turn(path, together):
    """Until all engines have started, or failed, and it is this one's turn, which ends with its process."""
    if path is None:
        return
    while len(path.read_text().splitlines()) < together:
        time.sleep(0.2)
    fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX)


def started(args, folder, backend, random_weights):
    """The engine."""
    import vllm

    memory = {"gpu_memory_utilization": 0.85}
    if args.kv_gb:
        memory = {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": int(args.kv_gb * 1e9)}
    extra = {}
    if args.engine == "bitsandbytes":
        if random_weights:
            raise SystemExit("measure.py: expected a checkpoint with --engine bitsandbytes, found a config.json alone")
        extra = {"quantization": "bitsandbytes"}
    longest = max(args.prompt_len + args.new_tokens, args.prefill, 1024 + 256 if args.mixed else 0)
    graphs = sorted({*args.batch, *(size for size in POWERS if size < max(args.batch))})
    try:
        return vllm.LLM(
            str(folder),
            load_format="dummy" if random_weights else "auto",
            skip_tokenizer_init=True,
            dtype=args.dtype,
            enforce_eager=args.eager,
            tensor_parallel_size=args.tensor_parallel,
            linear_backend=backend,
            max_model_len=longest + 16,
            max_num_seqs=max(args.batch),
            max_num_batched_tokens=max(8192, args.prefill),
            enable_prefix_caching=False,
            **memory,
            compilation_config={"cudagraph_capture_sizes": graphs},
            seed=0,
            **extra,
        )
    finally:
        if args.turns:
            with args.turns.open("a") as turns:
                turns.write(f"{args.engine}\n")


def measured(args, load):
    """The times."""
    room = load.config.cache_config.kv_cache_size_tokens  # whose keys and values fit
    fitting = {batch: room // batch // KV_BLOCK * KV_BLOCK - args.prompt_len for batch in args.batch}
    new_tokens = {batch: min(args.new_tokens, most) for batch, most in fitting.items()}
    decode = {}
    for batch in args.batch:
        decode[batch] = load.decode(batch, args.prompt_len, new_tokens[batch])
        print(f"batch {batch}: {decode[batch][0]:.3f} ms a step", file=sys.stderr, flush=True)
    return {
        "decode_ms": {batch: values[0] for batch, values in decode.items()},
        "decode_ms_min_max": {batch: values[1:] for batch, values in decode.items()},
        "prompt_len": args.prompt_len,
        "new_tokens": new_tokens,
        "prefill_tokens": args.prefill,
        "first_token_ms": load.first_token(args.prefill) if args.prefill else None,
        "mixed_requests": args.mixed,
        "mixed_tokens_per_s": load.mixed(args.mixed) if args.mixed else None,
    }


def main():
    args = parsed()
    if args.in_process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # lets apply_model send functions to the worker processes,
    here = str(pathlib.Path(__file__).resolve().parent)  # which must be able to import them
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), here]))
    import inside_engine
    import torch
    import vllm

    quantization, backend = ENGINES[args.engine]
    folder, random_weights = model_folder(args.model, quantization)
    began = time.perf_counter()
    llm = started(args, folder, backend, random_weights)
    start_s = time.perf_counter() - began
    wait_for_turn(args.turns, args.together)
    filled = llm.apply_model(inside_engine.randomize)[0] if random_weights else 0
    load = Load(llm, args.repeat)
    finite = load.finite()
    result = {"model": args.model.stem, "engine": args.engine, "tensor_parallel": args.tensor_parallel}
    result |= measured(args, load)
    peak = llm.apply_model(inside_engine.most_memory)[0] / 1e9
    result |= {
        "weight_gb": round(llm.apply_model(inside_engine.weight_bytes)[0] / 1e9, 3),  # of one GPU
        "peak_gb": round(peak - args.kv_gb, 3) if args.kv_gb else None,
        "kv_gb": args.kv_gb or None,
        "logprobs_finite": finite,
        "weights": "random" if random_weights else "checkpoint",
        "integer_weights_randomized": filled,
        "linear_methods": llm.apply_model(inside_engine.linear_methods)[0],
        "dtype": str(load.config.model_config.dtype),
        "cuda_graphs": str(load.config.compilation_config.cudagraph_mode),
        "compile_mode": str(load.config.compilation_config.mode),
        "repeat": args.repeat,
        "engines_idle_on_the_gpu": args.together - 1,
        "engine_start_s": round(start_s, 1),
        "device": torch.cuda.get_device_name(0),
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
        "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    try:
        result["steps"] = {batch: load.step(batch, args.prompt_len) for batch in args.kernels}
    finally:  # without the profiler's part where it fails
        print(json.dumps(result, indent=1))
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")
    if not finite:
        raise SystemExit("measure.py: expected finite log probabilities, found others")


if __name__ == "__main__":
    main()
