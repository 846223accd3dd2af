"""Quantized checkpoints, layer by layer."""

import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ._arrays import encoded_path
from ._library import Handle, PackedView, check, lib
from ._tensor import QuantizedTensor


class Checkpoint(Mapping[str, QuantizedTensor]):
    """The quantized layers of a checkpoint: a mapping from names like "model.layers.0.mlp.down_proj", in file order.

    path: the folder (config.json and safetensors shards) or one .safetensors file. It is memory-mapped: opening reads
    no weights, and the arrays of a layer are read-only views of the file, which stays mapped as long as one of them
    lives. Do not overwrite the file in place meanwhile; replacing it with another one does no harm. What is not
    quantized (embeddings, norms) is in the same files under its own names, for the package safetensors to read. A
    checkpoint without quantized layers has length 0.

    Raises TypeError, flute.Error of kind "io" (not there, not readable), "format" (not what docs/format.md describes)
    or "unsupported" (a newer version of the format).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        pointer = ctypes.c_void_p()
        check(lib.flute_checkpoint_open(encoded_path(path, "Checkpoint: path"), pointer), "Checkpoint")
        self.path = Path(path)
        self._handle = Handle(pointer, lib.flute_checkpoint_destroy)
        count = lib.flute_checkpoint_layer_count(pointer)
        # In file order; a dict, so that a name is found at once.
        self._names: dict[str, bytes] = {}
        for index in range(count):
            name: bytes = lib.flute_checkpoint_layer_name(pointer, index)
            self._names[name.decode(errors="surrogateescape")] = name

    def __getitem__(self, name: str) -> QuantizedTensor:
        """The layer of that name; KeyError when there is none."""
        if name not in self._names:
            raise KeyError(f"{name!r} is not one of the {len(self)} quantized layers of {self.path}")
        view = PackedView(size=ctypes.sizeof(PackedView))
        check(lib.flute_checkpoint_get_layer(self._handle.pointer, self._names[name], view), "Checkpoint")
        return QuantizedTensor._from_view(view, self._handle)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}: {len(self)} quantized layers)"
