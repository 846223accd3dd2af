"""What `flute quantize` writes against an independent implementation of docs/format.md, bit for bit.

FLUTE_PROGRAM names the program (default: build/flute), FLUTE_TEST_SEED brings a run's random matrices back.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("FLUTE_PROGRAM", str(ROOT / "build" / "flute"))
SEED = int(os.environ.get("FLUTE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)

sys.path.insert(0, str(ROOT / "docs"))
import format_reader  # noqa: E402

# The sixteen numbers of the QLoRA paper's appendix E.
NF4 = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
NAMES = [f"model.layers.{i}.mlp.down_proj" for i in range(4)]


def to_bf16(values):
    return (format_reader.round_to(values, "bf16").view(np.uint32) >> 16).astype(np.uint16)


STORE = {"F32": lambda v: v, "F16": lambda v: v.astype(np.float16), "BF16": to_bf16}


def write_safetensors(path, tensors, dtype):
    header, blobs, end = {}, [], 0
    for name, values in tensors.items():
        blob = STORE[dtype](values).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [end, end + len(blob)]}
        end += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def random_matrix(rng, n, k, dtype):
    """Normal weights, and everything that makes rounding hard."""
    w = rng.standard_normal((n, k)).astype(np.float32)
    w[rng.random((n, k)) < 0.1] = 0
    w[rng.random((n, k)) < 0.1] = 1e-41  # a subnormal among normal numbers
    ties = rng.random((n, k)) < 0.2
    w[ties] = np.round(w[ties] * 4) / 4
    for row in range(n):
        kind = rng.integers(8)
        first = 32 * rng.integers(k // 32)
        if kind == 0:
            w[row] = 0
        elif kind == 1:
            w[row, first : first + 32] *= np.float32(1e-39)  # a group of subnormals
        elif kind == 2:
            w[row, first : first + 32] *= np.float32(8000)  # near the top of fp16
        elif kind == 3 and dtype != "F16":
            w[row] *= np.float32(1e-8)  # scales that are subnormal in fp16
    stored = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}[dtype]
    return format_reader.round_to(w, stored)


def nearest(t, table):
    """Codes by docs/format.md: boundaries half way in double, a value on one goes to the lower code."""
    best = np.zeros(t.shape, np.int64)
    value = np.full(t.shape, np.float64(table[0]))
    for code in range(1, table.shape[0]):
        other = np.float64(table[code])
        middle = (value + other) / 2
        better = np.where(value < other, t > middle, (value > other) & (t < middle))
        best[better] = code
        value[better] = other
    return best


def quantize(w, table, magnitude, group_size, scale_dtype):
    n, k = w.shape
    group = group_size if group_size > 0 else k
    codes, scales = [], []
    for begin in range(0, k, group):
        part = w[:, begin : begin + group]
        scale = format_reader.round_to(np.abs(part).max(axis=1) / np.float32(magnitude), scale_dtype)
        t = np.where(scale[:, None] == 0, np.float32(0), part / np.where(scale == 0, np.float32(1), scale)[:, None])
        codes.append(nearest(t.astype(np.float64), table))
        scales.append(scale)
    return np.concatenate(codes, axis=1), np.stack(scales, axis=1)


def pack(codes, bits):
    stream = (codes[:, :, None] >> np.arange(bits) & 1).astype(np.uint8).reshape(len(codes), -1)
    return np.packbits(stream, axis=1, bitorder="little").view("<u4")


def run(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def checkpoint(folder, tensors, dtype):
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors, dtype)
    (folder / "config.json").write_text(json.dumps({"architectures": ["SomeModel"], "model_type": "some"}))


def random_table(rng, bits):
    table = rng.standard_normal(1 << bits).astype(np.float32)
    table[rng.integers(1 << bits)] = table[rng.integers(1 << bits)]  # sometimes a value twice
    return table


CASES = [
    # bits, table, group size, scale dtype, weight dtype
    (4, "nf", 64, "fp16", "BF16"),
    (4, "nf", 64, "fp32", "F32"),
    (4, "nf", -1, "bf16", "F16"),
    (4, "int", 128, "fp16", "BF16"),
    (8, "int", 32, "fp16", "F32"),
    (2, "int", 256, "bf16", "BF16"),
    (4, "fp", 32, "fp16", "BF16"),
    (2, "random", 64, "fp16", "BF16"),
    (3, "random", 32, "fp32", "F32"),
    (4, "random", 64, "fp16", "F16"),
    (5, "random", 128, "bf16", "F32"),
    (6, "random", 256, "fp16", "BF16"),
    (7, "random", 64, "fp32", "BF16"),
    (8, "random", -1, "fp16", "F32"),
]


@pytest.mark.parametrize("bits,table_name,group_size,scale_dtype,dtype", CASES)
def test_codes_and_scales(tmp_path, bits, table_name, group_size, scale_dtype, dtype):
    print(f"FLUTE_TEST_SEED={SEED}")
    rng = np.random.default_rng([SEED, bits, group_size + 1])
    if table_name == "nf":
        table, magnitude = np.array(NF4, np.float32), 1
    elif table_name == "int":
        table, magnitude = np.arange(-(1 << bits - 1), 1 << bits - 1).astype(np.float32), (1 << bits - 1) - 1
    elif table_name == "fp":
        table, magnitude = np.array(E2M1 + [-v for v in E2M1], np.float32), 6
    else:
        table = random_table(rng, bits)
        magnitude = np.abs(table).max()
        (tmp_path / "table.json").write_text(json.dumps({"bits": bits, "values": table.astype(float).tolist()}))
    shapes = [(rng.integers(1, 40), 32 * rng.integers(1, 24)) for _ in NAMES]  # mostly with a short last group
    weights = {f"{name}.weight": random_matrix(rng, *shape, dtype) for name, shape in zip(NAMES, shapes, strict=True)}
    checkpoint(tmp_path / "source", weights, dtype)

    codebook = tmp_path / "table.json" if table_name == "random" else table_name
    done = run(
        *("quantize", tmp_path / "source", tmp_path / "target", "--bits", bits, "--codebook", codebook),
        *("--group-size", group_size, "--scale-dtype", scale_dtype),
    )
    assert done.returncode == 0, done.stderr

    written = format_reader.read_safetensors(tmp_path / "target" / "model.safetensors")
    dequantized = dict(format_reader.dequantized(tmp_path / "target"))
    assert sorted(dequantized) == sorted(weights)
    for name, w in weights.items():
        codes, scales = quantize(w, table, magnitude, group_size, scale_dtype)
        np.testing.assert_array_equal(written[f"{name}_codebook"].view(np.uint32), table.view(np.uint32))
        np.testing.assert_array_equal(written[f"{name}_scale"].astype(np.float32), scales)
        np.testing.assert_array_equal(format_reader.unpack(written[f"{name}_packed"], bits), codes)
        np.testing.assert_array_equal(written[f"{name}_packed"], pack(codes, bits))


@pytest.mark.parametrize("out", ["fp32", "fp16", "bf16"])
def test_dequantize_agrees_with_the_reader(tmp_path, monkeypatch, out):
    print(f"FLUTE_TEST_SEED={SEED}")
    rng = np.random.default_rng([SEED, 1])
    weights = {f"{name}.weight": random_matrix(rng, 24, 480, "BF16") for name in NAMES}
    checkpoint(tmp_path / "source", weights, "BF16")
    done = run("quantize", tmp_path / "source", tmp_path / "q", "--bits", 3, "--layer-bits", r"\.2\.=5")
    assert done.returncode == 0, done.stderr
    done = run("dequantize", tmp_path / "q", tmp_path / "plain", "--dtype", out)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(format_reader, "PARTS", (*format_reader.PARTS, "weight"))
    plain = format_reader.read_safetensors(tmp_path / "plain" / "model.safetensors")
    monkeypatch.undo()
    for name, weight in format_reader.dequantized(tmp_path / "q", out):
        np.testing.assert_array_equal(plain[name].astype(np.float32), weight)
    tables = [
        v for k, v in format_reader.read_safetensors(tmp_path / "q" / "model.safetensors").items() if "codebook" in k
    ]
    assert sorted(map(len, tables)) == [8, 8, 8, 32]


def test_named_tables(tmp_path):
    """nf at the other widths and the small floats, as docs/format.md lists them."""
    rng = np.random.default_rng([SEED, 2])
    checkpoint(tmp_path / "source", {f"{NAMES[0]}.weight": random_matrix(rng, 4, 64, "BF16")}, "BF16")
    expected = {
        ("nf", 2): [-1, 0, 0.33791513671312795, 1],
        ("nf", 3): [
            *(-1, -0.47862908531009651, -0.21714178000118009, 0),
            *(0.16093014438029077, 0.33791513671312795, 0.56261688796998499, 1),
        ],
        ("fp", 3): [0, 1, 2, 3, 0, -1, -2, -3],
        ("int", 3): [-4, -3, -2, -1, 0, 1, 2, 3],
    }
    for (name, bits), values in expected.items():
        target = tmp_path / f"{name}{bits}"
        done = run("quantize", tmp_path / "source", target, "--bits", bits, "--codebook", name)
        assert done.returncode == 0, done.stderr
        codebook = format_reader.read_safetensors(target / "model.safetensors")[f"{NAMES[0]}.weight_codebook"]
        np.testing.assert_array_equal(codebook, np.array(values, np.float32))
