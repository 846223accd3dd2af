"""A LoRA adapter trained in front of a quantized model, with peft: python lora.py MODEL TEXT [STEPS]

MODEL is what `flute quantize` wrote, TEXT a UTF-8 file. Its last tenth is kept to measure on.
pip install . as docs/python.md says for PyTorch, then pip install transformers peft.
"""

import sys

import flute.transformers
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW, BATCH = 256, 4


def windows(folder: str, text: str) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    return ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)


@torch.inference_mode()
def perplexity(model: torch.nn.Module, data: torch.Tensor) -> float:
    losses = [model(input_ids=batch, labels=batch).loss.item() for batch in data.split(BATCH)]
    return torch.tensor(losses).mean().exp().item()


def main(folder: str, text: str, steps: str = "60") -> None:
    torch.manual_seed(0)
    with open(text, encoding="utf-8") as file:
        data = windows(folder, file.read())
    train, held_out = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    print(f"held-out perplexity before: {perplexity(model, held_out):.3f}")

    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    config._register_custom_module({flute.Linear: LoraLinear})  # peft's way to name layers that it does not know
    adapted = get_peft_model(model, config)
    adapted.print_trainable_parameters()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for step in range(int(steps)):
        batch = train[torch.randint(len(train), (BATCH,))]
        loss = adapted(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"\rstep {step + 1} of {steps}, loss {loss.item():.3f}", end="", flush=True)
    print(f"\nheld-out perplexity after: {perplexity(adapted, held_out):.3f}")
    adapted.save_pretrained(folder.rstrip("/") + "-lora")  # the adapter alone


if __name__ == "__main__":
    main(*sys.argv[1:])
