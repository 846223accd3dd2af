#!/usr/bin/env python3
"""Write a checkpoint of random weights with the tensor sizes of a real model, to measure quantizing and loading with.

The default has Llama-3-8B's sizes cut to 4 layers (3.9 GB): hidden 4096, MLP 14336, vocabulary 128256, 32 heads and
8 key-value heads of 128, untied, bf16. Only numpy is needed. The model says nothing sensible, and has no tokenizer.

    python3 bench/make_checkpoint.py /tmp/llama-4-layers
    python3 bench/make_checkpoint.py /tmp/llama-4-bit --layers 32 --bits 4 --group-size 128  # quantized: random codes
    python3 bench/make_checkpoint.py /tmp/tiny --tiny
"""

import argparse
import json
import pathlib
import struct

import numpy

TINY = {"hidden": 64, "mlp": 192, "vocab": 512, "heads": 4, "kv_heads": 2, "head_dim": 16, "layers": 2}
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4}


def linear(args, name, n, k):
    """The tensors of a linear layer of a block, quantized or not."""
    if not args.bits:
        yield name + ".weight", "BF16", (n, k)
        return
    yield name + ".weight_packed", "I32", (n, k * args.bits // 32)
    yield name + ".weight_scale", "F16", (n, -(-k // args.group_size))
    yield name + ".weight_codebook", "F32", (2**args.bits,)


def tensors_of(args):
    """(name, dtype, shape) in the order of the file."""
    hidden, mlp = args.hidden, args.mlp
    yield "model.embed_tokens.weight", "BF16", (args.vocab, hidden)
    for layer in range(args.layers):
        block = f"model.layers.{layer}."
        yield block + "input_layernorm.weight", "BF16", (hidden,)
        yield from linear(args, block + "self_attn.q_proj", args.heads * args.head_dim, hidden)
        yield from linear(args, block + "self_attn.k_proj", args.kv_heads * args.head_dim, hidden)
        yield from linear(args, block + "self_attn.v_proj", args.kv_heads * args.head_dim, hidden)
        yield from linear(args, block + "self_attn.o_proj", hidden, args.heads * args.head_dim)
        yield block + "post_attention_layernorm.weight", "BF16", (hidden,)
        yield from linear(args, block + "mlp.gate_proj", mlp, hidden)
        yield from linear(args, block + "mlp.up_proj", mlp, hidden)
        yield from linear(args, block + "mlp.down_proj", hidden, mlp)
    yield "model.norm.weight", "BF16", (hidden,)
    if not args.tied:
        yield "lm_head.weight", "BF16", (args.vocab, hidden)


def bf16(values):
    """float32 -> bfloat16 bits, rounded to nearest even."""
    bits = values.view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def pools(random):
    """For each dtype numbers that tensors are made of: normal weights of deviation 0.02, random codes, scales that give
    such weights."""
    count = 1 << 20
    return {
        "BF16": bf16(random.standard_normal(count, dtype=numpy.float32) * numpy.float32(0.02)),
        "I32": random.integers(-(2**31), 2**31, count, dtype=numpy.int32),
        "F16": random.uniform(0.03, 0.04, count).astype(numpy.float16),
    }


def write_shard(path, tensors, random):
    """A pool of random numbers is reused from random offsets, which is fast."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape in tensors:
        size = SIZES[dtype] * int(numpy.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool_of = pools(random)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, dtype, shape in tensors:
            count = int(numpy.prod(shape))
            if dtype == "F32":
                file.write(numpy.linspace(-1, 1, count, dtype=numpy.float32).tobytes())
                continue
            if len(shape) == 1:
                file.write(bf16(numpy.ones(count, numpy.float32)).tobytes())
                continue
            pool = pool_of[dtype]
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
    parser.add_argument("--bits", type=int, help="quantize the blocks: random codes, a table of equal steps")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--tied", action="store_true", help="no lm_head.weight: the embedding is the head")
    parser.add_argument("--tiny", action="store_true", help="a few hundred kilobytes instead")
    parser.add_argument("--shard-bytes", type=int, default=1_500_000_000, help="start a new file beyond this size")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.tiny:
        vars(args).update(TINY, shard_bytes=200_000)

    shards, size = [[]], 0
    for name, dtype, shape in tensors_of(args):
        count = SIZES[dtype] * int(numpy.prod(shape))
        if shards[-1] and size + count > args.shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, dtype, shape))
        size += count

    args.folder.mkdir(parents=True, exist_ok=True)
    random = numpy.random.default_rng(args.seed)
    weight_map, total = {}, 0
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        total += write_shard(args.folder / file, tensors, random)
        weight_map.update((name, file) for name, _, _ in tensors)
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
    if args.bits:
        config["quantization_config"] = {
            "quant_method": "flute",
            "format_version": 1,
            "bits": args.bits,
            "group_size": args.group_size,
            "codebook": "learned",
            "scale_dtype": "fp16",
            "method": "rtn",
            "modules_to_not_convert": ["lm_head"],
        }
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (args.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (args.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"{args.folder}: {total / 1e9:.2f} GB in {len(shards)} shards")


if __name__ == "__main__":
    main()
