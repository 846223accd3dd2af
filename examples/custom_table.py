"""What a table of your own does to a model: python custom_table.py MODEL TEXT

MODEL is a checkpoint that is not quantized, TEXT a UTF-8 file. Perplexity with the table below, made of the quantiles
of a Student-t distribution, beside NormalFloat and k-means, at 3 bits.
pip install . as docs/python.md says for PyTorch, then pip install transformers.
"""

import sys

import flute
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW, WINDOWS = 512, 20

quantiles = np.quantile(np.random.default_rng(0).standard_t(5, 1_000_000), np.linspace(0.03, 0.97, 8))
TABLES = {"original": None, "nf": "nf", "kmeans": "kmeans", "student-t": quantiles / np.abs(quantiles).max()}


@torch.inference_mode()
def main(folder: str, text: str) -> None:
    with open(text, encoding="utf-8") as file:
        ids = AutoTokenizer.from_pretrained(folder)(file.read(), return_tensors="pt")["input_ids"][0]
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)[:WINDOWS]
    for name, table in TABLES.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if table is not None:
            flute.quantize_model(model, bits=3, codebook=table)
        losses = [model(window[None], labels=window[None]).loss for window in windows]
        print(f"{name:10} perplexity {torch.stack(losses).mean().exp().item():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
