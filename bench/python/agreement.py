#!/usr/bin/env python3
"""Perplexity of a quantized model by the program, by transformers on the CPU, and by transformers on a GPU.

    python3 bench/python/agreement.py examples/docs-llama-small examples/docs-gemma2-small --program build/flute
    python3 bench/python/agreement.py ... --write-reference reference.json     # beside the program
    python3 bench/python/agreement.py ... --reference reference.json           # elsewhere

Each model is quantized at 4, 3 and 2 bits, as `./dev demo` does, while transformers loads it, which gives the codes and
scales that the program writes. Windows of 512 tokens of --text, as `flute perplexity` reads it. Wanted: within 0.1 % of
the program's (fp32, fp16), 0.3 % (bf16); the exit code is 1 otherwise.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import flute.transformers
import torch
import transformers

WINDOW = 512
FORMATS = {4: {}, 3: {"codebook": "kmeans"}, 2: {"codebook": "kmeans", "group_size": 32}}
WITHIN = {torch.float32: 1e-3, torch.float16: 1e-3, torch.bfloat16: 3e-3}


def token_ids(folder, text):
    """Documents are separated by a line of one NUL, each between the model's tokens of beginning and end."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    ids = []
    for document in text.split("\n\0\n"):
        body = tokenizer(document, add_special_tokens=False)["input_ids"]
        ids += [config.bos_token_id, *body, config.eos_token_id]
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)


@torch.inference_mode()
def perplexity(model, windows):
    total = 0.0
    for part in windows.split(16):
        scores = model(part.to(model.device)).logits[:, :-1].float().log_softmax(-1)
        total -= scores.gather(2, part[:, 1:, None].to(model.device)).double().sum().item()
    return math.exp(total / (windows.shape[0] * (WINDOW - 1)))


def of_program(args, folder, bits):
    with tempfile.TemporaryDirectory() as target:
        quantized = pathlib.Path(target) / "quantized"
        command = [args.program, "quantize", folder, quantized, "--bits", str(bits)]
        for name, value in FORMATS[bits].items():
            command += ["--" + name.replace("_", "-"), str(value)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        command = [args.program, "perplexity", quantized, args.text, "--window", str(WINDOW), "--json"]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer["perplexity"], answer["predictions"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path, default="examples/docs-test-small.txt")
    parser.add_argument("--bits", default="4,3,2")
    parser.add_argument("--program", help="flute")
    parser.add_argument("--reference", type=pathlib.Path)
    parser.add_argument("--write-reference", type=pathlib.Path)
    args = parser.parse_args()
    reference = json.loads(args.reference.read_text()) if args.reference else {}
    places = [("cpu", torch.float32)]
    if torch.cuda.is_available():
        places += [("cuda", torch.float16), ("cuda", torch.bfloat16)]
    text, bad = args.text.read_text(), 0
    for folder in args.models:
        windows = token_ids(folder, text)
        for bits in map(int, args.bits.split(",")):
            name = f"{folder.name} {bits}"
            if args.program:
                reference[name] = of_program(args, folder, bits)
            expected, predictions = reference[name]
            assert predictions == windows.shape[0] * (WINDOW - 1), f"{predictions} predictions of {windows.shape}"
            line = f"{name}: program {expected:.4f}"
            for device, dtype in places:
                config = flute.transformers.FluteConfig(bits, **FORMATS[bits])
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, quantization_config=config, dtype=dtype, device_map=device, attn_implementation="eager"
                )  # with 5.17's default Gemma-2 is .02 % off
                found = perplexity(model, windows)
                away = found / expected - 1
                bad += abs(away) > WITHIN[dtype]
                line += f", {device} {str(dtype).removeprefix('torch.')} {found:.4f} ({100 * away:+.3f} %)"
            print(line, flush=True)
    if args.write_reference:
        args.write_reference.write_text(json.dumps(reference, indent=1) + "\n")
    print(f"{bad} further away than wanted")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
