#!/usr/bin/env python3
"""Write a checkpoint of random weights with the tensor sizes of a real model, to measure `flute quantize` with.

The default has Llama-3-8B's sizes cut to 4 layers (3.9 GB): hidden 4096, MLP 14336, vocabulary 128256, 32 heads and
8 key-value heads of 128, untied, bf16. Only numpy is needed. The model says nothing sensible, and has no tokenizer.

    python3 bench/make_checkpoint.py /tmp/llama-4-layers
    python3 bench/make_checkpoint.py /tmp/tiny --tiny
"""

import argparse
import json
import pathlib
import struct

import numpy

TINY = {"hidden": 64, "mlp": 192, "vocab": 512, "heads": 4, "kv_heads": 2, "head_dim": 16, "layers": 2}


def tensor_shapes(args):
    """(name, shape) in the order of the file."""
    hidden, mlp = args.hidden, args.mlp
    yield "model.embed_tokens.weight", (args.vocab, hidden)
    for layer in range(args.layers):
        block = f"model.layers.{layer}."
        yield block + "input_layernorm.weight", (hidden,)
        yield block + "self_attn.q_proj.weight", (args.heads * args.head_dim, hidden)
        yield block + "self_attn.k_proj.weight", (args.kv_heads * args.head_dim, hidden)
        yield block + "self_attn.v_proj.weight", (args.kv_heads * args.head_dim, hidden)
        yield block + "self_attn.o_proj.weight", (hidden, args.heads * args.head_dim)
        yield block + "post_attention_layernorm.weight", (hidden,)
        yield block + "mlp.gate_proj.weight", (mlp, hidden)
        yield block + "mlp.up_proj.weight", (mlp, hidden)
        yield block + "mlp.down_proj.weight", (hidden, mlp)
    yield "model.norm.weight", (hidden,)
    if not args.tied:
        yield "lm_head.weight", (args.vocab, hidden)


def bf16(values):
    """float32 -> bfloat16 bits, rounded to nearest even."""
    bits = values.view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def write_shard(path, tensors, random):
    """Normal weights of deviation 0.02: a pool of random numbers is reused from random offsets, which is fast."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        size = 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = bf16(random.standard_normal(1 << 20, dtype=numpy.float32) * numpy.float32(0.02))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in tensors:
            count = int(numpy.prod(shape))
            if len(shape) == 1:
                file.write(bf16(numpy.ones(count, numpy.float32)).tobytes())
                continue
            while count:
                begin = int(random.integers(0, pool.size // 2))
                part = pool[begin : begin + count]
                file.write(part.tobytes())
                count -= part.size
    return offset


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--mlp", type=int, default=14336)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tied", action="store_true", help="no lm_head.weight: the embedding is the head")
    parser.add_argument("--tiny", action="store_true", help="a few hundred kilobytes instead")
    parser.add_argument("--shard-bytes", type=int, default=1_500_000_000, help="start a new file beyond this size")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.tiny:
        vars(args).update(TINY, shard_bytes=200_000)

    shards, size = [[]], 0
    for name, shape in tensor_shapes(args):
        count = 2 * int(numpy.prod(shape))
        if shards[-1] and size + count > args.shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += count

    args.folder.mkdir(parents=True, exist_ok=True)
    random = numpy.random.default_rng(args.seed)
    weight_map, total = {}, 0
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        total += write_shard(args.folder / file, tensors, random)
        weight_map.update((name, file) for name, _ in tensors)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "head_dim": args.head_dim,
        "hidden_act": "silu",
        "hidden_size": args.hidden,
        "intermediate_size": args.mlp,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": args.heads,
        "num_hidden_layers": args.layers,
        "num_key_value_heads": args.kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": args.tied,
        "torch_dtype": "bfloat16",
        "vocab_size": args.vocab,
    }
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (args.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (args.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"{args.folder}: {total / 1e9:.2f} GB in {len(shards)} shards")


if __name__ == "__main__":
    main()
