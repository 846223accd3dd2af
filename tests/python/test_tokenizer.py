"""`flute tokenize` against Hugging Face `tokenizers`: the same ids for any text, the same text for any ids.

FLUTE_PROGRAM names the program (default: build/flute), FLUTE_TOKENIZER_DRAWS the number of random strings per tokenizer
(default 2000), FLUTE_TOKENIZER_SEED the seed (default: a new one, printed). FLUTE_TEST_MODELS and FLUTE_TEST_DATA may
name folders with more checkpoints and texts.
"""

import json
import os
import random
import subprocess
import unicodedata
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("FLUTE_PROGRAM", str(ROOT / "build" / "flute"))
DRAWS = int(os.environ.get("FLUTE_TOKENIZER_DRAWS", "2000"))
SEED = int(os.environ.get("FLUTE_TOKENIZER_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


def folders(variable, default):
    found = [ROOT / "examples"]
    more = Path(os.environ.get(variable, default))
    return found + ([more] if more.is_dir() else [])


MODELS = [
    path.parent
    for folder in folders("FLUTE_TEST_MODELS", ROOT.parent / "shared" / "models")
    for path in sorted(folder.glob("*/tokenizer.json"))
]
TEXTS = [
    path
    for folder in folders("FLUTE_TEST_DATA", ROOT.parent / "shared" / "data")
    for path in sorted(folder.glob("docs-*.txt"))
]

# Python 3.11 and PCRE2 10.42 have the tables of Unicode 14. A later Python knows characters that PCRE2 may not.
ASSIGNED = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
BY_CATEGORY = {}
for character in ASSIGNED:
    BY_CATEGORY.setdefault(unicodedata.category(character), []).append(character)
SPACES = [
    chr(c)
    for c in (0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x20, 0x85, 0xA0, 0x1680, 0x2003, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
]
ODD = [
    chr(c)
    for c in (
        0x00,
        0x1B,
        0x1C,
        0x7F,
        0xAD,
        0x180E,
        0x200B,
        0x200C,
        0x200D,
        0x2060,
        0xFEFF,
        0xFFFD,
        0xFFFF,
        0x10FFFF,
        0x2581,
    )
]
CONTRACTIONS = ["'s", "'S", "'t", "'RE", "'Ve", "'m", "'lL", "'d", "'\u017f", "\u2019s", "'", "''s", "'\u017ft", "n't"]
SCRIPTS = [
    (0x41, 0x7A),
    (0xC0, 0x17F),
    (0x370, 0x3FF),
    (0x400, 0x4FF),
    (0x5D0, 0x5EA),
    (0x620, 0x64A),
    (0x905, 0x939),
    (0xE01, 0xE2E),
    (0x3041, 0x3096),
    (0x4E00, 0x4FFF),
    (0xAC00, 0xAD00),
    (0x10400, 0x1044F),
    (0x1D400, 0x1D454),
]
EMOJI = [
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea",
    "\u2764\ufe0f",
    "\U0001f44d\U0001f3fd",
    "1\ufe0f\u20e3",
]
WORDS = "the std::vector class #include <string> int main() return template_argument 2024 3.14159 0xFF a.b.com".split()


def random_text(rng, special_tokens):
    """One string from 1 to a few hundred characters, now and then a very long run."""
    parts = []
    for _ in range(rng.choice((1, 2, 3, 5, 8, 20))):
        kind = rng.randrange(14)
        count = rng.choice((1, 1, 2, 3, 7, 30))
        if kind == 0:
            parts.append("".join(rng.choice(ASSIGNED) for _ in range(count)))
        elif kind == 1:
            parts.append("".join(rng.choice(rng.choice(list(BY_CATEGORY.values()))) for _ in range(count)))
        elif kind == 2:
            parts.append("".join(rng.choice(SPACES) for _ in range(count)))
        elif kind == 3:
            parts.append(rng.choice((" ", "\n", "\r\n", "\r", "\t", "\n\n", " \n", "  ")) * count)
        elif kind == 4:
            parts.append("".join(rng.choice(ODD) for _ in range(count)))
        elif kind == 5:
            parts.append(
                rng.choice(("", " ", "x", "\u00e9")) + rng.choice(CONTRACTIONS) + rng.choice(("", " ", "x", "1"))
            )
        elif kind == 6:
            low, high = rng.choice(SCRIPTS)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(count)))
        elif kind == 7:
            parts.append(rng.choice(EMOJI) * rng.choice((1, 1, 2, 5)))
        elif kind == 8:
            parts.append(rng.choice("aZ\u00e9\u4e2d") + "".join(rng.choice(BY_CATEGORY["Mn"]) for _ in range(count)))
        elif kind == 9:
            parts.append(rng.choice(special_tokens)[: rng.choice((None, None, None, -1))])
        elif kind == 10:
            parts.append("".join(rng.choice("0123456789\u0663\u0966\u00b2\u2167") for _ in range(count)))
        elif kind == 11:
            parts.append(rng.choice((" ", "")).join(rng.choice(WORDS) for _ in range(count)))
        elif kind == 12:
            parts.append("".join(chr(rng.randint(0, 0x2FF)) for _ in range(count)))
        else:
            length = rng.choice((50, 200, 1000)) if rng.random() < 0.9 else rng.choice((5000, 20000))
            parts.append(
                rng.choice((" ", "a", "\n", "\u2581", "!", "7", "\u00e9", "ab", "\u4e2d", "\0", "\U0001f600")) * length
            )
            break  # one long run a string
    return "".join(parts)


def flute(model, lines, *options):
    """One call of the program for many JSON lines."""
    stdin = "".join(json.dumps(line) + "\n" for line in lines)
    run = subprocess.run(
        [PROGRAM, "tokenize", str(model), "--jsonl", *options], input=stdin.encode(), capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    return [json.loads(line) for line in run.stdout.decode().split("\n")[:-1]]


def compare(model, texts, rng):
    """Ids of all texts, and the text of these ids and of others, are those of `tokenizers`."""
    reference = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    for special, option in ((True, ()), (False, ("--no-special",))):
        expected = [e.ids for e in reference.encode_batch_fast(texts, add_special_tokens=special)]
        found = flute(model, texts, *option)
        assert len(found) == len(expected)
        for text, e, f in zip(texts, expected, found, strict=True):
            assert f == e, f"ids of {text[:200]!r}, special tokens {special}"
        if special:
            ids = expected
    # Encoded texts, and ids that no text has: cut in the middle of a character, shuffled, unknown.
    end = reference.get_vocab_size()
    for sequence in list(ids):
        if len(sequence) > 1 and rng.random() < 0.5:
            cut = rng.randrange(len(sequence))
            ids.append(
                sequence[cut : cut + 50] + [rng.randrange(end) for _ in range(rng.randrange(3))] + sequence[:cut][:50]
            )
    for skip, option in ((True, ()), (False, ("--keep-special",))):
        expected = reference.decode_batch(ids, skip_special_tokens=skip)
        found = flute(model, ids, "--decode", *option)
        assert len(found) == len(expected)
        for sequence, e, f in zip(ids, expected, found, strict=True):
            assert f == e, f"text of {sequence[:200]}, special tokens skipped {skip}"


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_texts(model):
    """Whole files, and the documents in them (a line holding one NUL parts them)."""
    texts = []
    for path in TEXTS:
        text = path.read_bytes().decode()
        texts += [text, *text.split("\n\0\n"), *text.splitlines(keepends=True)[:2000]]
    assert texts
    compare(model, texts, random.Random(0))


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_random_texts(model):
    print(f"FLUTE_TOKENIZER_SEED={SEED}")
    rng = random.Random(SEED)
    reference = json.loads((model / "tokenizer.json").read_text())
    special_tokens = [token["content"] for token in reference["added_tokens"]] + [
        "<|eot_id|>",
        "<0x0A>",
        "<0xC3>",
        "<unk>",
    ]
    left = DRAWS
    while left > 0:  # in portions, so that memory stays small however many are asked for
        portion = min(left, 5000)
        compare(model, ["", *(random_text(rng, special_tokens) for _ in range(portion))], rng)
        left -= portion


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_every_character(model):
    """Each character of Unicode 14 between characters that make its class visible: letter, number, space or other."""
    characters = ASSIGNED if DRAWS >= 100000 else random.Random(SEED).sample(ASSIGNED, min(DRAWS, len(ASSIGNED)))
    texts = [f"a{c}b 1{c}2 {c}{c}!\n{c} \n'{c}" for c in characters]
    compare(model, texts, random.Random(SEED))


def variant(kind, rng):
    """A tokenizer.json as other checkpoints of the two families have it, made from an example's."""
    gemma = kind in ("added-gemma", "llama2", "unknown", "unknown-fused")
    root = json.loads(
        (ROOT / "examples" / f"docs-{'gemma2' if gemma else 'llama'}-small" / "tokenizer.json").read_text()
    )
    model = root["model"]
    if kind.startswith("added"):
        contents = ["<|eot_id|>", "<|eot", "ab", "abc", "bcd", "\u2581\u2581", "\u4e2d", "\u00e9a", "<0x0A>", "_"]
        flags = ["single_word", "lstrip", "rstrip", "normalized", "special"]
        if rng.random() < 0.5:  # `tokenizers` panics where such a token lies in what "rstrip" of another has taken
            contents += [" x", "x ", "   ", "\n", "\n\n", "a b"]
            flags.remove("rstrip")
        root["added_tokens"] += [
            {"id": len(model["vocab"]) + i, "content": content, "rstrip": False}
            | {flag: rng.random() < 0.4 for flag in flags}
            for i, content in enumerate(contents)
        ]
    elif kind == "llama2":
        root["normalizer"] = {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, root["normalizer"]],
        }
        root["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        root["pre_tokenizer"] = root["post_processor"] = None
    elif kind == "gpt2":
        root["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        root["post_processor"] = root["decoder"] = None
        model["ignore_merges"] = True
    elif kind == "legacy":
        model["merges"] = [" ".join(merge) for merge in model["merges"]]
        root["post_processor"] = root["post_processor"]["processors"][1]
    else:  # a vocabulary without some characters, with merges of stand-ins
        lost = set("qXYZ()\u2019") | {f"<0x{byte:02X}>" for byte in range(0x80, 0x100)}
        kept = {token: i for token, i in model["vocab"].items() if not lost & {*token, token}}
        model["vocab"] = kept | {"a<0x0A>": 5000, "a<0x0A>b": 5001, "<unk>e": 5002}
        model["merges"] = [["a", "<0x0A>"], ["a<0x0A>", "b"], ["<unk>", "e"]] + [
            merge for merge in model["merges"] if all(token in kept for token in (*merge, "".join(merge)))
        ]
        model["fuse_unk"] = kind == "unknown-fused"
        model["byte_fallback"] = rng.random() < 0.7
    return root


@pytest.mark.parametrize("kind", ["added-llama", "added-gemma", "llama2", "gpt2", "legacy", "unknown", "unknown-fused"])
def test_variants(kind, tmp_path):
    """Flags of added tokens, other normalizers, decoders and spellings, unknown characters."""
    print(f"FLUTE_TOKENIZER_SEED={SEED}")
    rng = random.Random(SEED)
    for round_ in range(5):
        root = variant(kind, rng)
        folder = tmp_path / str(round_)
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(root))
        tokens = [token["content"] for token in root["added_tokens"]]
        pieces = [*tokens, *"abcdxqXYZ_ \n\t\u00a0\u2019\u00e9e", "\u4e2d", "\U0001f600", "  ", "'s", "12345", "the"]
        texts = ["".join(rng.choice(pieces) for _ in range(rng.randrange(20))) for _ in range(DRAWS // 10)]
        texts += [random_text(rng, tokens) for _ in range(DRAWS // 10)]
        compare(folder, texts, rng)
