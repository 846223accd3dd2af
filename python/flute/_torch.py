"""PyTorch modules: Linear, and models of them. Imported when they are asked for."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ._arrays import BF16, MOST_SEGMENTS, SEGMENT_ROWS, Array, Element, float_array, group_count
from ._library import Error
from ._operator import Packed, Tiled, checked, gemm_packed, gemm_tiled, moved, stacked, weight_of
from ._quantize import quantize
from ._tensor import QuantizedTensor

_PARTS = ("weight_packed", "weight_scale", "weight_codebook", "weight_offset")
# Buffers of a layer on a GPU: the codes, and for each dtype of activations scales and codebook.
_CODES = "tiled_codes"
_VALUES = {
    torch.float16: ("tiled_scales_fp16", "tiled_codebook_fp16"),
    torch.bfloat16: ("tiled_scales_bf16", "tiled_codebook_bf16"),
}
_BUFFERS = {_CODES}.union(*_VALUES.values())


class Linear(torch.nn.Module):
    """torch.nn.Linear with a quantized weight: x [..., in_features] to [..., out_features], on the CPU or a GPU.

    q: the weight, [out_features, in_features], on the device that the layer is to be on. bias: [out_features], becomes
    a parameter; or None.

    The weight is a constant: gradients go to x and bias. Its names in the state_dict are those of the file format,
    "weight_packed", "weight_scale", "weight_codebook" and, where q has offsets, "weight_offset", in host memory
    wherever the layer is; loading takes any of the same shape, whatever its bits and group size. Its values never
    change: .to(), .half() and the like move it as `QuantizedTensor.to` does, and a dtype says what activations a GPU is
    to expect. x may have any of the three dtypes on the CPU, float16 or bfloat16 on a GPU (the bias must have that of
    x).

    Raises TypeError and ValueError; ImportError without PyTorch, flute.Error of kind "unsupported" without the
    operator.
    """

    def __init__(self, q: QuantizedTensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        if not isinstance(q, QuantizedTensor):
            raise TypeError(f"Linear: q: expected a QuantizedTensor, found {type(q).__name__}")
        if bias is not None and bias.shape != (q.n,):
            raise ValueError(f"Linear: bias: expected shape [{q.n}], found {list(bias.shape)}")
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach().clone())
        self.out_features, self.in_features = q.shape
        self._set(q)

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight."""
        return self._q

    @property
    def qweight(self) -> torch.Tensor:
        """A copy of the codes, int32 [out_features, in_features * bits / 32], on the layer's device: the name by which
        peft looks where a quantized layer is."""
        return _tensor(self._q.packed).to(self._device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Tensors are taken from the module itself: a graph made of it knows them as its own, and keeps them in place.
        given = x
        weight = self._weight
        x, bias = checked(x, self.bias, weight)
        if isinstance(weight, Packed):
            packed = self._packed, self._scales, self._codebook, self._offsets
            return gemm_packed(x, *packed, bias, *weight.sizes)
        if len(weight.rows) > 1 and bias is not None:  # which it has been given since it was stacked
            return weight.multiply(x, bias)
        scales, codebook = _VALUES[x.dtype]
        if scales not in self._buffers:
            self._set(self._q, x.dtype)
        tiled = self.tiled_codes, getattr(self, scales), getattr(self, codebook)
        if len(weight.rows) == 1:
            return gemm_tiled(x, *tiled, bias, *weight.stack.sizes)
        product = functools.partial(gemm_tiled, x, *tiled, None, *weight.stack.sizes)
        return weight.of_all(weight.stack.turns.take(weight.index, given, product))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._q.bits} bits, group size {self._q.group_size}"

    def _set(self, q: QuantizedTensor, dtype: torch.dtype | None = None) -> None:
        """The weight and its tensors become those of q. dtype: of activations that are expected, on a GPU."""
        weight = weight_of(q)
        if isinstance(weight, Tiled) and dtype is not None:
            weight.stack.of(dtype)
        self._q, self._weight, self._device = q, weight, weight.device
        self._hide_buffers()
        if isinstance(weight, Packed):
            self._packed, self._scales, self._codebook, self._offsets = weight.tensors
            return
        self._packed = self._scales = self._codebook = self._offsets = None
        self.register_buffer(_CODES, weight.stack.codes, persistent=False)
        for dtype, values in weight.stack.values.items():
            for name, tensor in zip(_VALUES[dtype], values, strict=True):
                self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Linear":
        # What it does to an empty tensor tells where the weight is to go, and for which dtype.
        example = fn(torch.empty(0, device=self._device))
        device, dtype = example.device, example.dtype if example.dtype in _VALUES else None
        buffers = self._hide_buffers()
        try:
            if dtype is None and self.bias is not None and self.bias.dtype in _VALUES:
                dtype = self.bias.dtype
            q = moved(self._q, device, dtype)
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(buffers)
        self._set(q)
        return self

    def _hide_buffers(self) -> dict[str, torch.Tensor | None]:
        """Takes the weight's from among the module's buffers, and returns them."""
        return {name: self._buffers.pop(name) for name in _BUFFERS & self._buffers.keys()}

    def __getstate__(self) -> dict[str, Any]:
        tensors = ("_weight", "_packed", "_scales", "_codebook", "_offsets")
        state = {name: value for name, value in self.__dict__.items() if name not in tensors}
        buffers = {name: value for name, value in self._buffers.items() if name not in _BUFFERS}
        return {**state, "_buffers": buffers, "_q": moved(self._q, "cpu"), "_dtypes": self._dtypes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        dtypes = state.pop("_dtypes")
        super().__setstate__(state)
        self._place(self._q, self._device, dtypes)

    def _place(self, q: QuantizedTensor, device: torch.device, dtypes: list[torch.dtype]) -> None:
        self._set(moved(q, device, *dtypes[:1]))
        for dtype in dtypes[1:]:
            self._set(self._q, dtype)

    def _dtypes(self) -> list[torch.dtype]:
        return list(self._weight.stack.values) if isinstance(self._weight, Tiled) else []

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        q = self._q
        for name, array in zip(_PARTS, (q.packed, q._scales, q.codebook, q._offsets), strict=True):
            if array is not None:
                destination[prefix + name] = _tensor(array)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        arguments = (state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(*arguments)
        parts = {name: state_dict[prefix + name] for name in _PARTS if prefix + name in state_dict}
        unexpected_keys[:] = [key for key in unexpected_keys if key not in {prefix + name for name in parts}]
        missing = [prefix + name for name in _PARTS[:3] if name not in parts]
        if missing:
            missing_keys += missing
            return
        try:
            self._place(self._read(parts), self._device, self._dtypes())
        except (TypeError, ValueError, Error) as error:
            error_msgs.append(f"{prefix}weight: {error}")

    def _read(self, parts: dict[str, torch.Tensor]) -> QuantizedTensor:
        n, k = self.out_features, self.in_features
        packed = parts["weight_packed"]
        bits = packed.shape[-1] * 32 // k if packed.dim() == 2 else 0
        if packed.dtype != torch.int32 or packed.shape != (n, k // 32 * bits) or not 1 <= bits <= 8:
            found = f"{packed.dtype} {list(packed.shape)}"
            raise ValueError(
                f"weight_packed: expected torch.int32 [{n}, {k} * bits / 32] with bits 1..8, found {found}"
            )
        scales = _array(parts["weight_scale"], "weight_scale")
        offsets = _array(parts["weight_offset"], "weight_offset") if "weight_offset" in parts else None
        codebook = _array(parts["weight_codebook"], "weight_codebook")
        if codebook[1] is BF16:
            raise TypeError("weight_codebook: expected float32, found bfloat16")
        # One column of scales may mean more than one group size: the one that is there stays.
        same = scales[0].shape[1:] == (group_count(k, self._q.group_size),)
        size = self._q.group_size if same else None
        words = packed.detach().cpu().numpy()
        return QuantizedTensor._checked(words, codebook[0], scales, offsets, bits, size, "state_dict")


def stack(*layers: Linear) -> None:
    """Makes layers that are called one after the other on the same tensor, q, k and v of an attention say, multiply as
    one: the first called makes the product for all, in one kernel instead of several, which is faster for few tokens.

    layers: 2 to 4 of `Linear` on one GPU, in the order of their calls, of the same in_features, bits and group size,
        without bias; out_features of all but the last a multiple of 32. Each keeps its codebook.

    Nothing else about them changes: state_dict, `quantized`, gradients; what they return is a view of the product for
    all, whose sums may be of another order. Their weights become one allocation, beside which there are for a moment
    those that were. A layer that is moved to another device, copied or loaded again is single from then on, and the
    others are right, but slow.
    Raises TypeError and ValueError.
    """
    for layer in layers:
        if type(layer) is not Linear:
            raise TypeError(f"stack: layers: expected flute.Linear, found {type(layer).__name__}")
    reason = why_not_stacked([(layer.quantized, layer.bias, layer._device) for layer in layers])
    if reason is not None:
        raise ValueError(f"stack: layers: {reason}")
    dtypes = list(dict.fromkeys(dtype for layer in layers for dtype in layer._dtypes()))
    qs = stacked([layer.quantized for layer in layers], layers[0]._device, dtypes[0])
    for layer, q in zip(layers, qs, strict=True):
        for dtype in dtypes:
            layer._set(q, dtype)


def why_not_stacked(parts: Sequence[tuple[QuantizedTensor, torch.Tensor | None, torch.device]]) -> str | None:
    """What is in the way of multiplying layers of these weights, biases and devices as one."""
    if not 2 <= len(parts) <= MOST_SEGMENTS:
        return f"expected 2 to {MOST_SEGMENTS}, found {len(parts)}"
    kinds = [(q.k, q.bits, q.group_size, str(device)) for q, _, device in parts]
    if len(set(kinds)) > 1:
        other = next(kind for kind in kinds if kind != kinds[0])
        return f"expected the same in_features, bits, group size and device, found {kinds[0]} and {other}"
    if parts[0][2].type != "cuda":
        return f"expected a CUDA device, found {parts[0][2]}"
    if any(bias is not None for _, bias, _ in parts):
        return "expected no bias, found one"
    if any(q.n % SEGMENT_ROWS for q, _, _ in parts[:-1]):
        found = [q.n for q, _, _ in parts]
        return f"expected out_features of all but the last at multiples of {SEGMENT_ROWS}, found {found}"
    return None


def quantize_model(
    model: torch.nn.Module,
    bits: int = 4,
    codebook: Any = "nf",
    group_size: int = 64,
    *,
    scale_dtype: Any = "float16",
    method: str = "rtn",
    modules_to_not_convert: Iterable[str] | None = None,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
) -> torch.nn.Module:
    """Replaces the linear layers of a model by `Linear` of their quantized weights, in place, and returns the model.

    bits, codebook, group_size, scale_dtype, method: as in `flute.quantize`.
    modules_to_not_convert: names of modules, or beginnings of names up to a dot, that stay as they are; None: the
    output head of a transformers model.
    layers: for each module that differs, by name, the arguments among bits, codebook and group_size that differ.

    A layer stays on its device; the quantizing itself is done on the CPU. Only modules of exactly the type
    torch.nn.Linear are replaced. Raises TypeError and ValueError, which name the layer; layers before it are replaced
    then.
    """
    left = list(modules_to_not_convert) if modules_to_not_convert is not None else head_of(model)
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or is_among(name, left):
            continue
        settings = {"bits": bits, "codebook": codebook, "group_size": group_size, **(layers or {}).get(name, {})}
        try:
            q = quantize(weight_array(module.weight), scale_dtype=scale_dtype, method=method, **settings)
        except (TypeError, ValueError) as error:
            raise type(error)(f"quantize_model: {name}: {error}") from None
        dtype = module.weight.dtype if module.weight.dtype in _VALUES else None
        layer = Linear(moved(q, module.weight.device, dtype), module.bias)
        model.set_submodule(name, layer.train(module.training))
    return model


def head_of(model: Any) -> list[str]:
    """The name of a transformers model's output head, where it has one."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [name for name, module in model.named_modules() if head is not None and module is head]


def is_among(name: str, names: Iterable[str]) -> bool:
    """Whether a module is one of `names`, or within one."""
    return any(name == one or name.startswith(one + ".") for one in names)


def weight_array(weight: torch.Tensor) -> Array:
    """As float32, which is exact, and codes and scales are those of the weight's own dtype."""
    array: Array = weight.detach().to("cpu", torch.float32).numpy()
    return array


def _tensor(array: Array) -> torch.Tensor:
    """A copy of an array of the format, in which uint16 stands for bf16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _array(tensor: torch.Tensor, name: str) -> tuple[Array, Element]:
    """The reverse: values and their type."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16), BF16
    return float_array(tensor.numpy(), name)
