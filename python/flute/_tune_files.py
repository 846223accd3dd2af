"""The files of a tuned checkpoint: those of the quantized one, with other scales and tables."""

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from ._library import Error

_INDEX = "model.safetensors.index.json"
_PARTS = ("weight_packed", "weight_scale", "weight_codebook", "weight_offset")
_PIECE = 1 << 24


class Place(NamedTuple):
    """Where a tensor's bytes are."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def sha256(self) -> bytes:
        digest = hashlib.sha256()
        with self.file.open("rb") as file:
            file.seek(self.begin)
            for begin in range(self.begin, self.end, _PIECE):
                digest.update(file.read(min(_PIECE, self.end - begin)))
        return digest.digest()


def places(folder: Path) -> dict[str, Place]:
    """Every tensor of a checkpoint. flute.Error of kind "io" or "format"."""
    try:
        index = folder / _INDEX
        if index.is_file():
            files = sorted({folder / name for name in json.loads(index.read_bytes())["weight_map"].values()})
        else:
            files = sorted(folder.glob("*.safetensors"))
        return {name: place for file in files for name, place in _places_in(file)}
    except OSError as error:
        raise Error(f"tune: {error}", "io") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise Error(f"tune: {folder}: expected safetensors files, found {error!r}", "format") from None


def _places_in(file: Path) -> list[tuple[str, Place]]:
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    start = 8 + size
    return [
        (name, Place(file, entry["dtype"], tuple(entry["shape"]), *(start + at for at in entry["data_offsets"])))
        for name, entry in header.items()
    ]


def check_same_rest(quantized: Path, original: Path, layers: Iterable[str]) -> None:
    """flute.Error of kind "format" unless all that is not quantized is what the original has, byte for byte."""
    ours, theirs = places(quantized), places(original)
    for name in sorted(ours.keys() - {f"{layer}.{part}" for layer in layers for part in _PARTS}):
        one, other = ours[name], theirs.get(name)
        if other is None:
            raise Error(f"tune: {name}: expected it in {original} as in {quantized}, found none", "format")
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            expected, found = f"{one.dtype} {list(one.shape)} as in {quantized}", f"{other.dtype} {list(other.shape)}"
            raise Error(f"tune: {name}: expected {expected}, found {found} in {original}", "format")
        if one.sha256() != other.sha256():
            raise Error(f"tune: {name}: expected the values of {quantized}, found others in {original}", "format")


def check_target(target: Path, quantized: Path) -> None:
    """ValueError unless `target` may be made."""
    if target.exists() or target.is_symlink():
        raise ValueError(f"tune: {target}: expected a target that does not exist yet, found one")
    if target.resolve().is_relative_to(quantized.resolve()):
        raise ValueError(f"tune: {target}: expected a target outside of {quantized}, found one in it")


def write(quantized: Path, target: Path, changed: Mapping[str, Array], method: str) -> None:
    """Makes `target` from `quantized` with these tensors' bytes in the place of the old; it appears when it is whole.

    In config.json "tuned" is true; nfl becomes the method, otherwise the codebook of all layers is "learned".
    flute.Error of kind "io".
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=target.name + ".flute-", dir=target.parent) as temporary:
            folder = Path(temporary) / "whole"
            shutil.copytree(quantized, folder)
            for name, place in places(folder).items():
                if name in changed:
                    _replace(place, changed[name])
            path = folder / "config.json"
            _make_writable(path)
            path.write_text(_config(json.loads(path.read_bytes()), method), encoding="utf-8")
            os.rename(folder, target)
    except OSError as error:
        raise Error(f"tune: {error}", "io") from None


def _replace(place: Place, array: Array) -> None:
    data = np.ascontiguousarray(array).tobytes()
    assert len(data) == place.end - place.begin and array.shape == place.shape
    _make_writable(place.file)
    with place.file.open("r+b") as file:
        file.seek(place.begin)
        file.write(data)


def _make_writable(path: Path) -> None:
    """A copy has its source's mode, which may be read-only."""
    path.chmod(path.stat().st_mode | 0o200)


def _config(config: dict[str, Any], method: str) -> str:
    settings = config["quantization_config"]
    settings["tuned"] = True
    if method == "nfl":
        settings["method"] = method
        return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    settings["codebook"] = "learned"
    layers = settings.pop("layers", None) or {}
    for layer in layers.values():
        layer.pop("codebook", None)
    if others := {name: layer for name, layer in layers.items() if layer}:
        settings["layers"] = others
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
