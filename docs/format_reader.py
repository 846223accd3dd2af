"""Reads a quantized checkpoint with numpy alone: what docs/format.md says, as a program.

    python docs/format_reader.py FOLDER        prints each quantized layer

As a module: for name, weight in dequantized(folder): ...
"""

import json
import sys
from pathlib import Path

import numpy as np

PARTS = ("weight_packed", "weight_scale", "weight_codebook", "weight_offset")
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I32": np.uint32}


def read_safetensors(path):
    """{name: array} of the quantized layers' parts in one shard; bf16 becomes float32."""
    raw = np.memmap(path, np.uint8, "r")
    header_end = 8 + int(raw[:8].view("<u8")[0])
    tensors = {}
    for name, entry in json.loads(bytes(raw[8:header_end])).items():
        if name.rpartition(".")[2] not in PARTS:
            continue
        begin, end = (header_end + offset for offset in entry["data_offsets"])
        array = np.frombuffer(bytes(raw[begin:end]), DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return tensors


def round_to(values, dtype):
    """float32 values rounded to "fp32", "fp16" or "bf16", ties to even."""
    values = np.asarray(values, np.float32)
    if dtype == "fp16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return values


def unpack(words, bits):
    """int32 words [N, K*bits/32] -> codes [N, K], from the little-endian bit stream of each row."""
    stream = np.unpackbits(words.astype("<u4").view(np.uint8), axis=1, bitorder="little")
    return stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits))


def dequantize(words, scale, codebook, bits, group_size, offset=None, dtype="fp32"):
    """rn(rn(codebook[code]) * rn(scale)), then rn(that + rn(offset)), with rn rounding to `dtype`."""
    codes = unpack(words, bits)
    n, k = codes.shape
    group = np.arange(k) // (group_size if group_size > 0 else k)
    table = np.broadcast_to(round_to(codebook, dtype), (n, 1 << bits))
    weight = round_to(np.take_along_axis(table, codes, axis=1) * round_to(scale, dtype)[:, group], dtype)
    return weight if offset is None else round_to(weight + round_to(offset, dtype)[:, group], dtype)


def dequantized(folder, dtype="fp32"):
    """Yields (name of the weight, float32 [N, K]) for each quantized layer of a checkpoint."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    if config["quant_method"] != "flute" or config["format_version"] != 1:
        raise ValueError(f"{folder}: expected quant_method flute, format_version 1")
    index, shards = folder / "model.safetensors.index.json", {"model.safetensors"}
    if index.exists():
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    tensors = {name: array for shard in sorted(shards) for name, array in read_safetensors(folder / shard).items()}
    for prefix in [name.rpartition(".")[0] for name in tensors if name.endswith(".weight_packed")]:
        layer = {**config, **(config.get("layers") or {}).get(prefix, {})}
        words, scale, codebook, offset = (tensors.get(f"{prefix}.{part}") for part in PARTS)
        yield f"{prefix}.weight", dequantize(words, scale, codebook, layer["bits"], layer["group_size"], offset, dtype)


if __name__ == "__main__":
    for weight_name, matrix in dequantized(sys.argv[1]):
        print(f"{weight_name}  {matrix.shape[0]} x {matrix.shape[1]}  absmax {np.abs(matrix).max():.6g}")
