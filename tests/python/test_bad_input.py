"""Every kind of broken input: one line on standard error that names file, tensor, expected and found; exit code 1;
nothing left behind."""

import json
import os
import struct

import numpy as np
import pytest
from checkpoints import (
    LLAMA,
    TEXT,
    TINY_CONFIG,
    layout,
    read_safetensors,
    tiny_llama,
    to_bf16,
    write_raw,
    write_safetensors,
)

NAME = "model.layers.1.mlp.up_proj.weight"


def refuse(flute, tmp_path, *command, mentions):
    """The command fails, and no file below tmp_path has come or gone."""
    before = sorted(tmp_path.rglob("*"))
    line = flute.fails(*command, mentions=mentions)
    assert sorted(tmp_path.rglob("*")) == before
    return line


# ------------------------------------------------------------------------------------------------------- safetensors


def edited(edit):
    """Breaks the header entry of one tensor."""

    def apply(path):
        header, data = layout(read_safetensors(path))
        edit(header[NAME], len(data))
        write_raw(path, header, data)

    return apply


def cut(count):
    return lambda path: path.write_bytes(path.read_bytes()[:count])


def header_length(length, size=None):
    def apply(path):
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
        if size is not None:
            os.truncate(path, size)  # sparse: it takes no room

    return apply


def duplicate(path):
    header, data = layout(read_safetensors(path))
    text = json.dumps(header)
    write_raw(path, text[:-1] + f', "{NAME}": ' + json.dumps(header[NAME]) + "}", data)


def overlap(path):
    header, data = layout(read_safetensors(path))
    entry = header[NAME]
    shift = 2 * 64
    entry["data_offsets"] = [offset - shift for offset in entry["data_offsets"]]
    write_raw(path, header, data)


def offsets(begin, end):
    return edited(lambda entry, size: entry.update(data_offsets=[begin, end]))


def shape(*dims):
    return edited(lambda entry, size: entry.update(shape=list(dims)))


BROKEN_FILES = {
    "empty": (cut(0), []),
    "seven bytes": (cut(7), []),
    "cut in the header": (cut(100), []),
    "cut in the data": (cut(-10), []),
    "header length beyond the file": (header_length(10**7), []),
    "header length beyond 100 MB": (header_length(150_000_000, 200_000_000), ["100"]),
    "header length of all ones": (header_length(2**64 - 1), []),
    "header is no JSON": (lambda path: write_raw(path, b"{\xff}"), []),
    "header ends early": (lambda path: write_raw(path, '{"a": {"dtype": '), []),
    "header is an array": (lambda path: write_raw(path, "[1, 2]"), []),
    "header nested deeply": (lambda path: write_raw(path, "[" * 200_000), []),
    "duplicate name": (duplicate, [NAME]),
    "overlapping offsets": (overlap, []),
    "offsets out of range": (edited(lambda entry, size: entry.update(data_offsets=[size, size + 12288])), [NAME]),
    "negative offsets": (offsets(-64, 12224), [NAME]),
    "offsets in the wrong order": (offsets(12288, 0), [NAME]),
    "overflowing offsets": (offsets(2**63, 2**63 + 12288), [NAME]),
    "offsets beyond 64 bits": (offsets(2**64, 2**64 + 12288), [NAME]),
    "one offset": (edited(lambda entry, size: entry.update(data_offsets=[0])), [NAME]),
    "offsets that are no integers": (offsets(0.5, "x"), [NAME]),
    "unknown dtype": (edited(lambda entry, size: entry.update(dtype="BF17")), [NAME, "BF17"]),
    "dtype of another size": (edited(lambda entry, size: entry.update(dtype="F32")), [NAME]),
    "no dtype": (edited(lambda entry, size: entry.pop("dtype")), [NAME]),
    "shape of another size": (shape(96, 65), [NAME]),
    "shape product overflows": (shape(2**40, 2**40), [NAME]),
    "shape product wraps to the right size": (shape(2**32, 2**32, 96, 64), [NAME]),
    "negative dimension": (shape(-96, -64), [NAME]),
    "shape is no array": (edited(lambda entry, size: entry.update(shape="96 x 64")), [NAME]),
}


@pytest.mark.parametrize("case", BROKEN_FILES, ids=lambda case: case.replace(" ", "-"))
def test_broken_safetensors(flute, tiny, tmp_path, case):
    break_it, mentions = BROKEN_FILES[case]
    break_it(tiny / "model.safetensors")
    for command in (["quantize", tiny, tmp_path / "out"], ["inspect", tiny], ["generate", tiny, "-p", "x"]):
        refuse(flute, tmp_path, *command, mentions=["model.safetensors", *mentions])


def test_weights_of_a_wrong_dtype(flute, tiny, tmp_path):
    path = tiny / "model.safetensors"
    tensors = read_safetensors(path)
    tensors[NAME] = np.ones(tensors[NAME].shape, np.int64)
    write_safetensors(path, tensors)
    command = ["quantize", tiny, tmp_path / "out"]
    refuse(flute, tmp_path, *command, mentions=["model.safetensors", NAME, "BF16", "I64"])
    refuse(flute, tmp_path, "perplexity", tiny, TEXT, mentions=["model.safetensors", NAME, "I64"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite(flute, tiny, tmp_path, value):
    path = tiny / "model.safetensors"
    tensors = read_safetensors(path)
    matrix = tensors[NAME].copy()
    matrix[41, 7] = np.float32(value).view(np.uint32) >> 16
    tensors[NAME] = matrix
    write_safetensors(path, tensors)
    line = refuse(flute, tmp_path, "quantize", tiny, tmp_path / "out", mentions=["model.safetensors", NAME])
    assert "41" in line and "7" in line and ("nan" in line.lower() or "inf" in line.lower())


def test_k_that_is_no_multiple_of_32(flute, tiny, tmp_path):
    path = tiny / "model.safetensors"
    tensors = read_safetensors(path)
    tensors[NAME] = to_bf16(np.ones((96, 40), np.float32))
    write_safetensors(path, tensors)
    for extra in ([], ["--dry-run"]):
        command = ["quantize", tiny, tmp_path / "out", *extra]
        refuse(flute, tmp_path, *command, mentions=["model.safetensors", NAME, "32", "40"])
    flute("quantize", tiny, tmp_path / "out", "--exclude", r"1\.mlp\.up_proj")


def test_a_scale_too_large_for_fp16(flute, tiny, tmp_path):
    path = tiny / "model.safetensors"
    tensors = read_safetensors(path)
    matrix = tensors[NAME].copy()
    matrix[3, 5] = to_bf16(np.array([1e30]))[0]
    tensors[NAME] = matrix
    write_safetensors(path, tensors)
    refuse(flute, tmp_path, "quantize", tiny, tmp_path / "out", mentions=[NAME])
    flute("quantize", tiny, tmp_path / "out", "--scale-dtype", "fp32")


# ------------------------------------------------------------------------------------------------- folders and index


def edit_index(folder, **changes):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].update(changes.pop("weight_map", {}))
    index.update(changes)
    path.write_text(json.dumps(index))


def test_nothing_there(flute, tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "nosuch", tmp_path / "empty"):
        for command in (["quantize", source, tmp_path / "out"], ["inspect", source], ["dequantize", source, "x"]):
            refuse(flute, tmp_path, *command, mentions=[source.name])
        for command in (["perplexity", source, TEXT], ["generate", source, "-p", "x"]):
            refuse(flute, tmp_path, *command, mentions=[source.name])


def test_a_shard_is_missing(flute, tmp_path):
    folder = tiny_llama(tmp_path / "in", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    for command in (["quantize", folder, tmp_path / "out"], ["inspect", folder], ["perplexity", folder, TEXT]):
        refuse(flute, tmp_path, *command, mentions=["model-00002-of-00003.safetensors"])


def test_a_tensor_is_missing_from_its_shard(flute, tmp_path):
    folder = tiny_llama(tmp_path / "in", shards=2)
    edit_index(folder, weight_map={"model.extra.weight": "model-00001-of-00002.safetensors"})
    refuse(flute, tmp_path, "inspect", folder, mentions=["model.extra.weight", "model-00001-of-00002.safetensors"])


@pytest.mark.parametrize("place", ["../outside.safetensors", "sub/../../outside.safetensors", "absolute"])
def test_an_index_that_points_outside(flute, tmp_path, place):
    folder = tiny_llama(tmp_path / "in", shards=2)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    target = str(outside) if place == "absolute" else place
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    moved = {name: target for name, file in weight_map.items() if file.startswith("model-00001")}
    edit_index(folder, weight_map=moved)
    for command in (["quantize", folder, tmp_path / "out"], ["inspect", folder]):
        refuse(flute, tmp_path, *command, mentions=["model.safetensors.index.json", "outside.safetensors"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"])
def test_an_index_that_is_none(flute, tmp_path, text):
    folder = tiny_llama(tmp_path / "in", shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    refuse(flute, tmp_path, "inspect", folder, mentions=["model.safetensors.index.json"])


def test_links_are_followed_as_in_the_hubs_cache(flute, tmp_path):
    folder = tiny_llama(tmp_path / "in", shards=2)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(os.path.join("..", "blobs", path.name))
    flute("quantize", folder, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "tokenizer.json").stat().st_size > 1000


# ------------------------------------------------------------------------------------------------ config and tokenizer


def run_model(flute, tmp_path, folder, mentions):
    refuse(flute, tmp_path, "perplexity", folder, TEXT, mentions=mentions)
    refuse(flute, tmp_path, "generate", folder, "-p", "x", "-n", 2, mentions=mentions)


@pytest.mark.parametrize(
    "field", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_config_without_a_field(flute, tiny, tmp_path, field):
    config = {key: value for key, value in TINY_CONFIG.items() if key != field}
    (tiny / "config.json").write_text(json.dumps(config))
    run_model(flute, tmp_path, tiny, ["config.json", field])


@pytest.mark.parametrize(
    "field,value",
    [
        ("num_attention_heads", 0),
        ("num_attention_heads", -2),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("num_hidden_layers", 10**12),
        ("num_hidden_layers", 0),
        ("hidden_size", 2**62),
        ("hidden_size", "64"),
        ("hidden_size", 64.5),
        ("head_dim", 0),
        ("vocab_size", 10**15),
        ("rms_norm_eps", -1),
        ("rope_theta", 0),
        ("max_position_embeddings", 0),
        ("eos_token_id", "end"),
        ("tie_word_embeddings", "yes"),
    ],
)
def test_config_with_an_absurd_field(flute, tiny, tmp_path, field, value):
    (tiny / "config.json").write_text(json.dumps({**TINY_CONFIG, field: value}))
    run_model(flute, tmp_path, tiny, ["config.json", field])


def test_config_that_is_none(flute, tiny, tmp_path):
    for text in ("", "{", "[]", "null"):
        (tiny / "config.json").write_text(text)
        run_model(flute, tmp_path, tiny, ["config.json"])
    (tiny / "config.json").unlink()
    run_model(flute, tmp_path, tiny, ["config.json"])


def test_unknown_architecture_can_be_quantized_but_not_run(flute, tiny, tmp_path):
    (tiny / "config.json").write_text(json.dumps({**TINY_CONFIG, "architectures": ["MambaForCausalLM"]}))
    run_model(flute, tmp_path, tiny, ["config.json", "MambaForCausalLM", "LlamaForCausalLM"])
    flute("quantize", tiny, tmp_path / "out")
    flute("inspect", tmp_path / "out", "--against", tiny)
    flute("dequantize", tmp_path / "out", tmp_path / "plain")


@pytest.mark.parametrize("command", ["perplexity", "generate"])
def test_weights_that_do_not_fit_the_config(flute, tiny, tmp_path, command):
    arguments = [TEXT] if command == "perplexity" else ["-p", "x"]
    path = tiny / "model.safetensors"
    tensors = read_safetensors(path)
    whole = dict(tensors)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_safetensors(path, tensors)
    refuse(flute, tmp_path, command, tiny, *arguments, mentions=["model.layers.1.mlp.up_proj"])
    whole["model.layers.1.mlp.up_proj.weight"] = to_bf16(np.ones((96, 96), np.float32))
    write_safetensors(path, whole)
    refuse(flute, tmp_path, command, tiny, *arguments, mentions=["model.layers.1.mlp.up_proj", "96", "64"])


@pytest.mark.parametrize(
    "edit",
    [
        lambda root: root["model"].update(type="WordPiece"),
        lambda root: root["model"].update(type="Unigram"),
        lambda root: root.update(model=None),
        lambda root: [root],
        lambda root: root["model"].update(vocab=[]),
        lambda root: root["model"].update(merges=[["only one"]]),
        lambda root: root["model"].update(merges=[["no such", "tokens"]]),
        lambda root: root.update(pre_tokenizer={"type": "BertPreTokenizer"}),
        lambda root: root.update(normalizer={"type": "Lowercase"}),
    ],
)
def test_a_tokenizer_of_another_kind(flute, tiny, tmp_path, edit):
    root = json.loads((tiny / "tokenizer.json").read_text())
    (tiny / "tokenizer.json").write_text(json.dumps(edit(root) or root))
    run_model(flute, tmp_path, tiny, ["tokenizer.json: ", "expected"])


def test_a_generation_config_that_is_none(flute, tiny, tmp_path):
    (tiny / "generation_config.json").write_text('{"eos_token_id": [1, "x"]}')
    run_model(flute, tmp_path, tiny, ["generation_config.json: eos_token_id", '"x"'])


def test_a_model_that_does_not_chat(flute, tiny, tmp_path):
    refuse(flute, tmp_path, "generate", tiny, "-p", "hi", "--chat", mentions=["tiny", "<|start_header_id|>"])


def test_a_tokenizer_that_is_none(flute, tiny, tmp_path):
    (tiny / "tokenizer.json").write_text("{")
    run_model(flute, tmp_path, tiny, ["tokenizer.json"])
    (tiny / "tokenizer.json").unlink()
    run_model(flute, tmp_path, tiny, ["tokenizer.json"])


def test_a_text_that_is_not_there_or_too_short(flute, tiny, tmp_path):
    refuse(flute, tmp_path, "perplexity", tiny, "nosuch.txt", mentions=["nosuch.txt"])
    (tmp_path / "short.txt").write_text("hi")
    command = ["perplexity", tiny, tmp_path / "short.txt", "--window", 128]
    refuse(flute, tmp_path, *command, mentions=["short.txt", "128"])
    refuse(flute, tmp_path, "perplexity", tiny, TEXT, "--window", 512, mentions=["256", "512"])


def test_more_tokens_than_the_model_has_positions(flute, tiny, tmp_path):
    refuse(flute, tmp_path, "generate", tiny, "-p", "word " * 400, mentions=["256"])


# ------------------------------------------------------------------------------------- codebooks, quantized checkpoints


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"bits": 2}',
        '{"values": [0, 1, 2, 3]}',
        '{"bits": 2, "values": []}',
        '{"bits": 2, "values": [0, 1, 2]}',
        '{"bits": 2, "values": [0, 1, 2, 3, 4]}',
        '{"bits": 2, "values": [0, 1, 2, NaN]}',
        '{"bits": 2, "values": [0, 1, 2, 1e999]}',
        '{"bits": 2, "values": [0, 1, 2, 1e60]}',
        '{"bits": 2, "values": [0, 1, 2, "3"]}',
        '{"bits": 2, "values": [0, 0, 0, 0]}',
        '{"bits": 9, "values": [0, 1]}',
        '{"bits": 2.5, "values": [0, 1, 2, 3]}',
        '{"bits": "2", "values": [0, 1, 2, 3]}',
    ],
)
def test_a_codebook_that_is_none(flute, tiny, tmp_path, text):
    (tmp_path / "table.json").write_text(text)
    command = ["quantize", tiny, tmp_path / "out", "--codebook", tmp_path / "table.json"]
    refuse(flute, tmp_path, *command, mentions=["table.json"])


def test_a_codebook_of_other_bits(flute, tiny, tmp_path):
    (tmp_path / "table.json").write_text('{"bits": 2, "values": [-1, 0, 0.5, 1]}')
    command = ["quantize", tiny, tmp_path / "out", "--codebook", tmp_path / "table.json", "--bits", 4]
    refuse(flute, tmp_path, *command, mentions=["table.json", "4", "2"])


QUANTIZED = "model.layers.1.mlp.up_proj.weight"
BROKEN_LAYERS = {
    "codes of another shape": ("_packed", lambda a: a[:, :-1].copy()),
    "codes of another dtype": ("_packed", lambda a: a.astype(np.int64)),
    "scales of another shape": ("_scale", lambda a: np.concatenate([a, a], axis=1)),
    "scales of another dtype": ("_scale", lambda a: a.astype(np.int32)),
    "scales that are not finite": ("_scale", lambda a: np.full_like(a, np.nan)),
    "table of another length": ("_codebook", lambda a: a[:-1].copy()),
    "table of another dtype": ("_codebook", lambda a: a.astype(np.float16)),
    "table that is not finite": ("_codebook", lambda a: np.full_like(a, np.inf)),
    "no scales": ("_scale", None),
    "no table": ("_codebook", None),
}


@pytest.mark.parametrize("case", BROKEN_LAYERS, ids=lambda case: case.replace(" ", "-"))
def test_broken_quantized_layers(flute, tiny, tmp_path, case):
    suffix, change = BROKEN_LAYERS[case]
    folder = tmp_path / "q"
    flute("quantize", tiny, folder)
    tensors = read_safetensors(folder / "model.safetensors")
    if change is None:
        del tensors[QUANTIZED + suffix]
    else:
        tensors[QUANTIZED + suffix] = change(tensors[QUANTIZED + suffix])
    write_safetensors(folder / "model.safetensors", tensors)
    refuse(flute, tmp_path, "dequantize", folder, tmp_path / "out", mentions=["model.layers.1.mlp.up_proj"])
    refuse(flute, tmp_path, "perplexity", folder, TEXT, mentions=["model.layers.1.mlp.up_proj"])


@pytest.mark.parametrize(
    "field,value", [("bits", 3), ("bits", 99), ("group_size", 48), ("group_size", 128), ("format_version", 1000)]
)
def test_quantization_config_that_does_not_fit(flute, tiny, tmp_path, field, value):
    folder = tmp_path / "q"
    flute("quantize", tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    assert field in config["quantization_config"]
    config["quantization_config"][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    refuse(flute, tmp_path, "dequantize", folder, tmp_path / "out", mentions=[folder.name, str(value)])


def test_quantizing_twice_or_dequantizing_what_is_plain(flute, quantized, tmp_path):
    refuse(flute, tmp_path, "quantize", quantized, tmp_path / "out", mentions=[quantized.name])
    refuse(flute, tmp_path, "dequantize", LLAMA, tmp_path / "out", mentions=[LLAMA.name])


def test_against_another_model(flute, quantized, tiny, tmp_path):
    refuse(flute, tmp_path, "inspect", quantized, "--against", tiny, mentions=["tiny"])
