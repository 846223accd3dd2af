"""A quantized checkpoint, dequantized and run by transformers, has the perplexity that `flute perplexity` finds.

    pip install torch transformers
    python tests/oracle/check_transformers.py [--program build/flute] [--text FILE] [--windows 12] [MODEL...]

For each model and format: quantize, dequantize to float32, load with transformers in float32, and compare the
perplexities over the same windows (the definition in reference.json) within 0.05 %. Config and tokenizer of the
quantized checkpoint must load as the original's do. Without a model: the two of examples/.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
WINDOW = 512
SEPARATOR = "\n\0\n"
TOLERANCE = 5e-4


def formats(folder, rng):
    """Yields (name, arguments of `flute quantize`)."""
    yield "NF4 g64", ["--bits", "4", "--codebook", "nf", "--group-size", "64"]
    yield "NF3 g64", ["--bits", "3", "--codebook", "nf", "--group-size", "64"]
    yield "int4 g128", ["--bits", "4", "--codebook", "int", "--group-size", "128"]
    table = folder / "table.json"
    table.write_text(json.dumps({"bits": 4, "values": [rng.uniform(-1, 1) for _ in range(16)]}))
    yield "random table, 4 bits g32", ["--bits", "4", "--codebook", str(table), "--group-size", "32"]
    yield "NF2 g64", ["--bits", "2", "--codebook", "nf", "--group-size", "64"]
    yield "NF5 per channel", ["--bits", "5", "--codebook", "nf", "--group-size", "-1"]


def shorten(text, tokenizer, config, windows):
    """(Whole documents of `text` that fill `windows` windows or a little more, their ids.)"""
    documents, ids = [], []
    for document in text.split(SEPARATOR):
        documents.append(document)
        ids.append(config.bos_token_id)
        ids += tokenizer.encode(document, add_special_tokens=False)
        ids.append(config.eos_token_id)
        if len(ids) >= windows * WINDOW:
            break
    return SEPARATOR.join(documents), ids


def perplexity(model, ids):
    total, count = 0.0, 0
    with torch.inference_mode():
        for begin in range(0, len(ids) - WINDOW + 1, WINDOW):
            window = torch.tensor([ids[begin : begin + WINDOW]])
            log_p = torch.log_softmax(model(window).logits[0, :-1].double(), -1)
            total -= log_p.gather(1, window[0, 1:, None]).sum().item()
            count += WINDOW - 1
    return math.exp(total / count), count


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def same_settings(original, quantized, probe):
    """Complaints about what does not load from `quantized` as it does from `original`."""
    configs = [AutoConfig.from_pretrained(path).to_dict() for path in (original, quantized)]
    for config in configs:
        config.pop("quantization_config", None)
        config.pop("_name_or_path", None)
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (original, quantized)]
    if configs[0] != configs[1]:
        yield "config differs"
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab() or len({str(t.encode(probe)) for t in tokenizers}) != 1:
        yield "tokenizer differs"


def check_model(flute, source, text, windows, rng):
    failures = 0
    tokenizer = AutoTokenizer.from_pretrained(source)
    text, ids = shorten(text, tokenizer, AutoConfig.from_pretrained(source), windows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text_file = folder / "text.txt"
        text_file.write_bytes(text.encode())
        cases = [("unquantized", None), *formats(folder, rng)]
        for number, (label, arguments) in enumerate(cases):
            quantized = plain = source
            if arguments is not None:
                quantized, plain = folder / f"quantized-{number}", folder / f"plain-{number}"
                flute("quantize", source, quantized, *arguments)
                flute("dequantize", quantized, plain, "--dtype", "fp32")
            found = json.loads(flute("perplexity", quantized, text_file, "--json"))
            expected, predictions = perplexity(load(plain), ids)
            error = found["perplexity"] / expected - 1
            complaints = list(same_settings(source, quantized, text[:2000]))
            if found["predictions"] != predictions:
                complaints.append(f"predictions: expected {predictions}, found {found['predictions']}")
            if not abs(error) <= TOLERANCE:
                complaints.append(f"beyond {TOLERANCE:.2%}")
            failures += bool(complaints)
            print(
                f"{source.name:18} {label:26} transformers {expected:9.5f}  flute {found['perplexity']:9.5f}"
                f"  {error:+.5%}  {', '.join(complaints) or 'ok'}",
                flush=True,
            )
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--program", default=str(ROOT / "build" / "flute"))
    parser.add_argument("--text", type=Path, default=ROOT / "examples" / "docs-test-small.txt")
    parser.add_argument("--windows", type=int, default=12, help="windows of 512 tokens to evaluate (default: 12)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}")

    def flute(*arguments):
        command = [options.program, *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    models = options.models or [ROOT / "examples" / name for name in ("docs-llama-small", "docs-gemma2-small")]
    text = options.text.read_bytes().decode()
    rng = random.Random(options.seed)
    failures = sum(check_model(flute, model.resolve(), text, options.windows, rng) for model in models)
    print("all within the tolerance" if failures == 0 else f"{failures} cases differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
