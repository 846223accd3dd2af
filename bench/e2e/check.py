#!/usr/bin/env python3
"""Whether vLLM says the same of a quantized checkpoint as the program `flute`: greedy continuations, and perplexity.

    check.py reference small-4-bit text.txt --program build/flute --json reference.json     on the CPU
    check.py compare small-4-bit reference.json [--eager] [--tensor-parallel 2]             on GPUs, in vLLM
    check.py compare small-4-bit merged.json --lora small-lora                              adapter.py made both

A continuation may part from the reference where the two best tokens are nearly as probable: there vLLM's own log
probabilities of the two must differ by at most GAP, and the reference's token must be one of the two. Perplexities must
agree to within 0.1 %. Exit code 1 otherwise.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys

PROMPTS, PROMPT_BYTES, NEW_TOKENS = 20, 160, 48
WINDOW, WINDOWS = 512, 16  # tokens; how many at most
DOCUMENT_END = "\n\0\n"
GAP = 0.25
PERPLEXITY = 1e-3


def program(path, *arguments, text=None):
    done = subprocess.run([path, *map(str, arguments)], input=text, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def reference(args):
    """Made by the program: continuations of the beginnings of documents, and perplexity of the text's first windows."""
    documents = args.text.read_text().split(DOCUMENT_END)
    prompts = [document[:PROMPT_BYTES].rsplit(" ", 1)[0] for document in documents if len(document) > 2 * PROMPT_BYTES]
    greedy = []
    for prompt in prompts[:PROMPTS]:
        answer = json.loads(
            program(args.program, "generate", args.model, "-p", "-", "-n", NEW_TOKENS, "--json", text=prompt)
        )
        split = answer["prompt_tokens"]
        greedy.append({"prompt": answer["ids"][:split], "ids": answer["ids"][split:]})
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    answers = program(args.program, "tokenize", args.model, "-", "--jsonl", text=lines).splitlines()
    end = json.loads((args.model / "config.json").read_text())["eos_token_id"]
    end = end[0] if isinstance(end, list) else end
    stream, taken = [], 0
    while len(stream) < WINDOW * WINDOWS and taken < len(documents):
        stream += [*json.loads(answers[taken]), end]
        taken += 1
    text = DOCUMENT_END.join(documents[:taken])
    found = json.loads(program(args.program, "perplexity", args.model, "-", "--window", WINDOW, "--json", text=text))
    windows = [stream[at : at + WINDOW] for at in range(0, len(stream) - WINDOW + 1, WINDOW)]
    if found["predictions"] != len(windows) * (WINDOW - 1):
        raise SystemExit(f"check.py: expected {len(windows)} windows, found {found['predictions']} predictions")
    result = {"greedy": greedy, "windows": windows, "perplexity": found["perplexity"]}
    args.json.write_text(json.dumps(result) + "\n")
    print(f"{len(greedy)} prompts, {len(windows)} windows, perplexity {found['perplexity']:.4f}")


def compare_greedy(llm, expected, lora):
    """Whether every continuation is the expected one, or parts from it where two tokens are as good."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=5, detokenize=False)
    prompts = [{"prompt_token_ids": one["prompt"]} for one in expected]
    outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
    equal, right = 0, True
    for number, (output, one) in enumerate(zip(outputs, expected, strict=True)):
        found, steps = list(output.outputs[0].token_ids), output.outputs[0].logprobs
        at = next((i for i, pair in enumerate(zip(found, one["ids"], strict=False)) if pair[0] != pair[1]), None)
        if at is None:
            equal += 1
            continue
        probable = {token: entry.logprob for token, entry in steps[at].items()}
        best = sorted(probable.values(), reverse=True)
        gap = best[0] - probable.get(one["ids"][at], -math.inf)
        near = gap <= min(GAP, best[0] - best[1] + 1e-6)
        right &= near
        print(f"prompt {number}: parts at token {at}, where the reference's is {gap:.4f} less probable (log)", end="")
        print("" if near else ": too much")
    print(f"greedy: {equal} of {len(expected)} continuations equal, {NEW_TOKENS} tokens each")
    return right


def compare_perplexity(llm, windows, expected, lora):
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    prompts = [{"prompt_token_ids": window} for window in windows]
    outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
    values = [
        step[token].logprob
        for output, window in zip(outputs, windows, strict=True)
        for token, step in zip(window[1:], output.prompt_logprobs[1:], strict=True)
    ]
    found = math.exp(-sum(values) / len(values))
    print(f"perplexity: {found:.4f}, reference {expected:.4f}: {found / expected - 1:+.4%}")
    return abs(found / expected - 1) <= PERPLEXITY


def compare(args):
    if args.in_process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm
    from vllm.lora.request import LoRARequest

    lora, options = None, {}
    if args.lora:
        lora = LoRARequest("adapter", 1, str(args.lora))
        rank = json.loads((args.lora / "adapter_config.json").read_text())["r"]
        options = {"enable_lora": True, "max_lora_rank": rank}
    given = json.loads(args.reference.read_text())
    llm = vllm.LLM(
        str(args.model),
        dtype=args.dtype,
        enforce_eager=args.eager,
        tensor_parallel_size=args.tensor_parallel,
        skip_tokenizer_init=True,
        max_model_len=WINDOW + 8,
        max_num_seqs=PROMPTS,
        enable_prefix_caching=False,
        gpu_memory_utilization=0.05,
        kv_cache_memory_bytes=1 << 30,
        seed=0,
        **options,
    )
    right = compare_greedy(llm, given["greedy"], lora)
    right &= compare_perplexity(llm, given["windows"], given["perplexity"], lora)
    sys.exit(0 if right else 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    made = commands.add_parser("reference")
    made.add_argument("model", type=pathlib.Path)
    made.add_argument("text", type=pathlib.Path)
    made.add_argument("--program", default="flute")
    made.add_argument("--json", type=pathlib.Path, required=True)
    made.set_defaults(run=reference)
    compared = commands.add_parser("compare")
    compared.add_argument("model", type=pathlib.Path)
    compared.add_argument("reference", type=pathlib.Path)
    compared.add_argument("--dtype", default="auto")
    compared.add_argument("--eager", action="store_true", help="no torch.compile, no CUDA graphs")
    compared.add_argument("--in-process", action="store_true", help="the engine in this process")
    compared.add_argument("--tensor-parallel", type=int, default=1)
    compared.add_argument("--lora", type=pathlib.Path, help="adapter to answer with")
    compared.set_defaults(run=compare)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
