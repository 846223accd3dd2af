"""The multiply of PyTorch tensors: torch.ops.flute, Linear, models of them. Imported when the first tensor is seen."""

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from . import _threads
from ._arrays import BF16, Array, Element, float_array, group_count
from ._library import CPU, Error, PackedView, check, lib, library_path
from ._quantize import quantize
from ._tensor import QuantizedTensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_PARTS = ("weight_packed", "weight_scale", "weight_codebook", "weight_offset")


def _load() -> ctypes.CDLL:
    path = library_path.with_name("libflute_torch.so")
    if not path.is_file():
        raise Error(
            f"flute: expected its PyTorch operator at {path}, found no file: install flute where PyTorch 2.10 or later "
            "is, with pip install --no-build-isolation",
            "unsupported",
        )
    try:
        torch.ops.load_library(path)
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        cause = error.__cause__ or error
        raise Error(f"flute: {path} does not load into PyTorch {torch.__version__}: {cause}", "unsupported") from error
    loaded.flute_torch_add.restype, loaded.flute_torch_add.argtypes = ctypes.c_int64, [ctypes.c_void_p]
    loaded.flute_torch_remove.restype, loaded.flute_torch_remove.argtypes = None, [ctypes.c_int64]
    return loaded


_operator = _load()


class Matrix:
    """A matrix that the operator knows by its number, until this object goes."""

    def __init__(self, q: QuantizedTensor) -> None:
        pointer = ctypes.c_void_p()
        segments = (ctypes.POINTER(PackedView) * 1)(ctypes.pointer(q._view()))
        pool = _threads.pool()
        check(lib.flute_matrix_create(CPU, 0, segments, 1, pool.pointer, pointer), "gemm")
        self.number: int = _operator.flute_torch_add(pointer)
        self.n, self.k = q.shape
        self._remove = _operator.flute_torch_remove  # still there when the interpreter takes modules apart

    def __del__(self) -> None:
        self._remove(self.number)


@torch.library.register_fake("flute::gemm")
def _(x: Any, matrix: int, n: int, bias: Any) -> Any:
    return x.new_empty((*x.shape[:-1], n))


@torch.library.register_fake("flute::gemm_transposed")
def _(y: Any, matrix: int, k: int) -> Any:
    return y.new_empty((*y.shape[:-1], k))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.matrix, _, _ = inputs
    ctx.k = x.shape[-1]


def _backward(ctx: Any, gradient: Any) -> tuple[Any, None, None, Any]:
    x = torch.ops.flute.gemm_transposed(gradient, ctx.matrix, ctx.k) if ctx.needs_input_grad[0] else None
    bias = gradient.sum_to_size(gradient.shape[-1:]) if ctx.needs_input_grad[3] else None
    return x, None, None, bias


torch.library.register_autograd("flute::gemm", _backward, setup_context=_setup)


def gemm(x: torch.Tensor, q: QuantizedTensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """flute.gemm for tensors."""
    if q._operand is None:
        q._operand = Matrix(q)
    return multiply(x, q._operand, bias)


def multiply(x: torch.Tensor, matrix: Matrix, bias: torch.Tensor | None) -> torch.Tensor:
    if x.device.type != "cpu":
        raise Error(f"gemm: x: expected a tensor on the CPU, found one on {x.device}", "unsupported")
    if x.dtype not in _DTYPES:
        raise TypeError(f"gemm: x: expected float32, float16 or bfloat16, found {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != matrix.k:
        raise ValueError(f"gemm: x: expected shape [..., {matrix.k}], found {list(x.shape)}")
    if bias is not None:
        if not isinstance(bias, torch.Tensor):
            raise TypeError(f"gemm: bias: expected a torch tensor as x is, found {type(bias).__name__}")
        if bias.dtype != x.dtype or bias.device != x.device:
            expected, found = f"{x.dtype} on {x.device} as x is", f"{bias.dtype} on {bias.device}"
            raise TypeError(f"gemm: bias: expected {expected}, found {found}")
        if bias.shape != (matrix.n,):
            raise ValueError(f"gemm: bias: expected shape [{matrix.n}], found {list(bias.shape)}")
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    result: torch.Tensor = torch.ops.flute.gemm(x, matrix.number, matrix.n, bias)
    return result


class Linear(torch.nn.Module):
    """torch.nn.Linear with a quantized weight: x [..., in_features] to [..., out_features], on the CPU.

    q: the weight, [out_features, in_features]. bias: [out_features], becomes a parameter; or None.

    The weight is a constant: gradients go to x and bias. Its names in the state_dict are those of the file format,
    "weight_packed", "weight_scale", "weight_codebook" and, where q has offsets, "weight_offset"; loading takes any of
    the same shape, whatever its bits and group size. It is no parameter and no buffer: .to(), .half() and the like
    leave it as it is, and x may have any of the three dtypes (the bias must have that of x).

    Raises TypeError and ValueError; ImportError without PyTorch, flute.Error of kind "unsupported" without the operator
    and for tensors elsewhere than on the CPU.
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
        """A copy of the codes, int32 [out_features, in_features * bits / 32]: the name by which peft looks where a
        quantized layer is."""
        return _tensor(self._q.packed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return multiply(x, self._matrix, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._q.bits} bits, group size {self._q.group_size}"

    def _set(self, q: QuantizedTensor) -> None:
        self._q, self._matrix = q, Matrix(q)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_matrix"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._matrix = Matrix(self._q)

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
            self._set(self._read(parts))
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

    Only modules of exactly the type torch.nn.Linear are replaced. Raises TypeError and ValueError, which name the
    layer; layers before it are replaced then.
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
        model.set_submodule(name, Linear(q, module.bias).train(module.training))
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
