"""Makes small checkpoints, whole and broken ones, with numpy and the standard library alone."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
LLAMA = EXAMPLES / "docs-llama-small"
GEMMA = EXAMPLES / "docs-gemma2-small"
TEXT = EXAMPLES / "docs-test-small.txt"

NUMPY_NAMES = {"float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8", "uint16": "BF16"}

# A Llama of two blocks that runs in no time. Its vocabulary is that of the tokenizer it borrows from the examples.
TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 2048,
}


def to_bf16(values):
    """float32 -> bfloat16 bits as uint16, to nearest even. Finite values only."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_raw(path, header, data=b""):
    """A safetensors file of any header: a dict, or text that no dict could make."""
    text = header if isinstance(header, (str, bytes)) else json.dumps(header)
    blob = text if isinstance(text, bytes) else text.encode()
    Path(path).write_bytes(struct.pack("<Q", len(blob)) + blob + data)


def layout(tensors):
    """Header and data of a file that holds `tensors` (name -> array; uint16 means bfloat16 bits) in a row."""
    header, blobs, end = {}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": NUMPY_NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + len(blob)],
        }
        end += len(blob)
        blobs.append(blob)
    return header, b"".join(blobs)


def write_safetensors(path, tensors, metadata=None):
    header, data = layout(tensors)
    write_raw(path, {"__metadata__": metadata, **header} if metadata else header, data)


def read_safetensors(path):
    """name -> array, bfloat16 as uint16."""
    blob = Path(path).read_bytes()
    size = struct.unpack("<Q", blob[:8])[0]
    types = {name: numpy_name for numpy_name, name in NUMPY_NAMES.items()}
    tensors = {}
    for name, entry in json.loads(blob[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = blob[8 + size + begin : 8 + size + end]
        tensors[name] = np.frombuffer(raw, types[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def read_checkpoint(folder):
    """All tensors of all shards."""
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(read_safetensors(path))
    return tensors


def llama_tensors(config, seed=1):
    """Random weights of a Llama of these dimensions, bfloat16."""
    rng = np.random.default_rng(seed)
    hidden, middle, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]

    def matrix(n, k):
        return to_bf16(rng.standard_normal((n, k)).astype(np.float32) / np.float32(k) ** np.float32(0.5))

    def ones():
        return to_bf16(np.ones(hidden, np.float32))

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = ones()
        tensors[prefix + "post_attention_layernorm.weight"] = ones()
        for name, n, k in [("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)]:
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = matrix(n, k)
        for name, n, k in [("gate", middle, hidden), ("up", middle, hidden), ("down", hidden, middle)]:
            tensors[f"{prefix}mlp.{name}_proj.weight"] = matrix(n, k)
    tensors["model.norm.weight"] = ones()
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(vocab, hidden)
    return tensors


def write_checkpoint(folder, tensors, config, shards=1, tokenizer=True):
    """A folder as the hub has it; several shards get an index."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        shutil.copy(LLAMA / "tokenizer.json", folder)
        shutil.copy(LLAMA / "tokenizer_config.json", folder)
    names = list(tensors)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        write_safetensors(folder / file, part, {"format": "pt"})
        weight_map.update({name: file for name in part})
    total = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tiny_llama(folder, shards=1, **config):
    """A tiny Llama checkpoint; keyword arguments change its config."""
    config = {**TINY_CONFIG, **config}
    return write_checkpoint(folder, llama_tensors(config), config, shards)
