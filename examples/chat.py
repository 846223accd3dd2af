"""Quantize a model while it loads and talk to it: python chat.py MODEL [BITS]

MODEL is any checkpoint that transformers reads, quantized already or not. A line is a turn; a model without a chat
template continues the line. An empty line, or the end of the input, ends it. On a GPU where there is one.
pip install . as docs/python.md says for PyTorch, then pip install transformers.
"""

import sys

import torch
from flute.transformers import FluteConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TextStreamer


def main(folder: str, bits: str = "4") -> None:
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    quantized = hasattr(AutoConfig.from_pretrained(folder), "quantization_config")
    config = None if quantized else FluteConfig(bits=int(bits), method="mse")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype, device_map=device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns: list[dict[str, str]] = []
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            break
        if tokenizer.chat_template:
            turns.append({"role": "user", "content": line})
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        else:
            text = (tokenizer.bos_token or "") + line
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(device)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        answer = model.generate(**ids, streamer=streamer, max_new_tokens=200, do_sample=True, temperature=0.7)
        said = tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        turns.append({"role": "assistant", "content": said})


if __name__ == "__main__":
    main(*sys.argv[1:])
