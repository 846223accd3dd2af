"""The multiply of PyTorch tensors: torch.ops.flute, and what a weight is to it. Imported when the first is seen."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from . import _threads
from ._arrays import BF16, ELEMENTS, Array, read_only, seemingly_writable
from ._library import Error, PackedView, TiledView, check, lib, library_path
from ._tensor import QuantizedTensor

_DTYPES = {"cpu": (torch.float32, torch.float16, torch.bfloat16), "cuda": (torch.float16, torch.bfloat16)}
_NAMES = {"cpu": "float32, float16 or bfloat16", "cuda": "float16 or bfloat16"}
_CODES = {torch.float16: ELEMENTS["fp16"].code, torch.bfloat16: ELEMENTS["bf16"].code}


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
    number = ctypes.POINTER(ctypes.c_int64)
    loaded.flute_torch_add.restype = ctypes.c_int32
    loaded.flute_torch_add.argtypes = ctypes.POINTER(PackedView), ctypes.c_void_p, number
    loaded.flute_torch_remove.restype, loaded.flute_torch_remove.argtypes = None, [ctypes.c_void_p, ctypes.c_int64]
    return loaded


_operator = _load()


def _gradient_or_not(name: str) -> Callable[..., torch.Tensor]:
    """An operator of x, tensors of a weight, bias and sizes.

    A gradient registered in Python costs every call 10 us on its way through Python, also where none is asked for. So
    there is each operator once more without, which is taken where nothing is recorded or traced.
    """
    with_gradient, without = (getattr(torch.ops.flute, one).default for one in (name, name + "_forward"))
    bias_at = next(i for i, argument in enumerate(with_gradient._schema.arguments) if argument.name == "bias")

    def call(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        bias = rest[bias_at - 1]
        recorded = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
        if recorded or torch.compiler.is_compiling():
            result: torch.Tensor = with_gradient(x, *rest)
        else:
            result = without(x, *rest)
        return result

    return call


gemm_packed, gemm_tiled = _gradient_or_not("gemm"), _gradient_or_not("gemm_tiled")


class Packed:
    """A weight on the CPU: the tensors of a file, which are the arrays of `q`, and what the operator keeps for them."""

    def __init__(self, q: QuantizedTensor) -> None:
        packed = q.packed
        number, pool = ctypes.c_int64(), _threads.pool()
        check(_operator.flute_torch_add(q._view(packed), pool.pointer, number), "gemm")
        self._number, self._address = number, packed.ctypes.data
        self._remove = _operator.flute_torch_remove  # still there when the interpreter takes modules apart
        self._arrays = packed, q._scales, q.codebook, q._offsets
        offsets = None if q._offsets is None else tensor_of(q._offsets)
        self.tensors = tensor_of(packed), tensor_of(q._scales), tensor_of(q.codebook), offsets
        self.device, self.kind = torch.device("cpu"), "cpu"
        self.n, self.k = q.shape
        self.sizes = q.bits, q.group_size

    def __del__(self) -> None:
        if hasattr(self, "_remove"):
            self._remove(self._address, self._number)

    def packed(self) -> Array:
        return self._arrays[0]

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """flute.gemm"""
        x, bias = checked(x, bias, self)
        return gemm_packed(x, *self.tensors, bias, *self.sizes)


class Values(NamedTuple):
    """Scales and codebook of a weight on a GPU, rounded to the dtype of activations."""

    scales: torch.Tensor
    codebooks: torch.Tensor


class Sizes(NamedTuple):
    """Of matrices stacked along N, as the operator takes them after its tensors."""

    rows: list[int]
    k: int
    bits: int
    group_size: int


class Turns:
    """What layers share that are multiplied as one: the product for all of them, which the first makes.

    Layers of one input are called in their order, on the same tensor. The first multiplies, the others take what it
    made, and the last lets go of it. One that is called otherwise, or after a change of x in place, multiplies for
    itself, which is slower and no less right; so do threads that come between each other.
    """

    def __init__(self, count: int) -> None:
        self._last = count - 1
        self._made: tuple[torch.Tensor, int, torch.Tensor] | None = None  # of which x, its version, the product

    def take(self, index: int, x: torch.Tensor, multiply: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The product for layer `index`."""
        # Neither a graph nor inference mode knows versions: there x must stay as it is from one layer to the next.
        version = 0 if torch.compiler.is_compiling() or x.is_inference() else x._version
        made = self._made
        if index > 0 and made is not None and made[0] is x and made[1] == version:
            if index == self._last:
                self._made = None
            return made[2]
        y = multiply()
        if index == 0:
            self._made = x, version, y
        return y


class Stack:
    """Weights of one width on a GPU, stacked along n to be multiplied as one, or a single one: codes in the kernels'
    layout, and for each dtype of activations scales and codebooks."""

    def __init__(self, qs: Sequence[QuantizedTensor], device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.sizes = Sizes([q.n for q in qs], qs[0].k, qs[0].bits, qs[0].group_size)
        self.turns = Turns(len(qs))
        self._sources = [_with_codes(q, None) for q in qs]
        packed = [q.packed for q in qs]
        segments = [source._view(words) for source, words in zip(self._sources, packed, strict=True)]
        with torch.inference_mode(False):  # what is made here may be saved for a gradient later
            self.codes, values = tile(self.sizes, segments, device, dtype)
        self.values = {dtype: values}

    def of(self, dtype: torch.dtype) -> Values:
        """Made when it is first asked for."""
        if dtype not in self.values:
            if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
                there = " and ".join(str(one) for one in self.values)
                raise TypeError(
                    f"gemm: x: expected {there}, which the weight was moved to {self.device} for, found {dtype}; "
                    f"to({str(self.device)!r}, {dtype}) beforehand adds it"
                )
            segments = [source._view(source.codebook) for source in self._sources]  # any words: they are not read
            with torch.inference_mode(False):
                self.values[dtype] = _fill(_tiled_view(self.sizes, self.device, dtype), segments, None)
        return self.values[dtype]

    def packed(self, index: int) -> Array:
        """The codes of one as files have them."""
        n, bits = self.sizes.rows[index], self.sizes.bits
        words = torch.empty((n, self.sizes.k // 32 * bits), dtype=torch.int32, device=self.device)
        view = _tiled_view(self.sizes, self.device, next(iter(self.values)))
        view.codes = self.codes.data_ptr()
        check(lib.flute_untile(view, index, words.data_ptr(), _stream(self.device)), "packed")
        return read_only(words.cpu().numpy())


class Tiled:
    """A weight on a GPU: one of a stack."""

    def __init__(self, stack: Stack, index: int) -> None:
        self.stack, self.index = stack, index
        self.device, self.kind = stack.device, stack.device.type
        self.rows, self.k, self.bits, self.group_size = stack.sizes
        self.n = self.rows[index]
        self.begin = sum(self.rows[:index])

    def packed(self) -> Array:
        return self.stack.packed(self.index)

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """flute.gemm"""
        x, bias = checked(x, bias, self)
        stack = self.stack
        if bias is not None and len(self.rows) > 1:
            bias = torch.nn.functional.pad(bias, (self.begin, sum(self.rows) - self.begin - self.n))
        return self.of_all(gemm_tiled(x, stack.codes, *stack.of(x.dtype), bias, *stack.sizes))

    def of_all(self, y: torch.Tensor) -> torch.Tensor:
        """This weight's part of the stack's product."""
        return y if len(self.rows) == 1 else y[..., self.begin : self.begin + self.n]


def packed_view(words: torch.Tensor, scales: torch.Tensor, codebook: torch.Tensor, sizes: Sizes) -> PackedView:
    """One matrix of `sizes` as the library sees its tensors (those of a file), while they live."""
    view = PackedView(
        ctypes.sizeof(PackedView), len(words), sizes.k, sizes.group_size, sizes.bits, _CODES[scales.dtype]
    )
    view.codes, view.scales, view.codebook = words.data_ptr(), scales.data_ptr(), codebook.data_ptr()
    view.codebook_rows = 1
    return view


def tile(
    sizes: Sizes, segments: Sequence[PackedView], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, Values]:
    """Packed matrices, in host memory or on the device, stacked along N there for activations of `dtype`."""
    view = _tiled_view(sizes, device, dtype)
    codes = torch.empty(_bytes(view)[0], dtype=torch.uint8, device=device)
    return codes, _fill(view, segments, codes)


def _tiled_view(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> TiledView:
    """Without the tensors."""
    rows, k, bits, group_size = sizes
    view = TiledView(ctypes.sizeof(TiledView), k, group_size, tuple(rows), len(rows), bits, _CODES[dtype])
    view.device = device.index or 0
    return view


def _bytes(view: TiledView) -> list[int]:
    """Of codes, scales and codebooks."""
    found = [ctypes.c_size_t() for _ in range(3)]
    check(lib.flute_tiled_bytes(view, *found), "to")
    return [size.value for size in found]


def _fill(view: TiledView, segments: Sequence[PackedView], codes: torch.Tensor | None) -> Values:
    """Makes the values; the codes too, where there is memory for them."""
    device = torch.device("cuda", view.device)
    dtype = next(dtype for dtype, code in _CODES.items() if code == view.dtype)
    _, *sizes = _bytes(view)
    values = Values(*(torch.empty(size // 2, dtype=dtype, device=device) for size in sizes))
    view.codes = None if codes is None else codes.data_ptr()
    view.scales, view.codebooks = values.scales.data_ptr(), values.codebooks.data_ptr()
    pointers = (ctypes.POINTER(PackedView) * len(segments))(*(ctypes.pointer(one) for one in segments))
    check(lib.flute_tile(view, pointers, len(segments), _stream(device)), "to")
    return values


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


def moved(q: QuantizedTensor, device: Any, dtype: torch.dtype | None = None) -> QuantizedTensor:
    """QuantizedTensor.to"""
    try:
        where = torch.device(device)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"to: device: expected the CPU or a CUDA device, found {device!r}") from error
    if where.type not in _DTYPES:
        raise ValueError(f"to: device: expected the CPU or a CUDA device, found {where}")
    if dtype is not None and dtype not in _DTYPES["cuda"]:
        raise TypeError(f"to: dtype: expected {_NAMES['cuda']}, found {dtype}")
    if where.type == "cuda" and not torch.cuda.is_available():
        raise Error(f"to: device: expected a CUDA device for {where}, found none that PyTorch can use", "unsupported")
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    if str(where) == q.device:
        if isinstance(q._operand, Tiled) and dtype is not None:
            q._operand.stack.of(dtype)
        return q
    if where.type == "cpu":
        return _with_codes(q, q.packed)
    return stacked([q], where, dtype)[0]


def stacked(qs: Sequence[QuantizedTensor], device: torch.device, dtype: torch.dtype | None) -> list[QuantizedTensor]:
    """The same matrices on a GPU, to be multiplied as one."""
    stack = Stack(qs, device, dtype or _usual_dtype(qs[0]))
    results = [_with_codes(q, None) for q in qs]
    for index, result in enumerate(results):
        result._operand = Tiled(stack, index)
    return results


def _with_codes(q: QuantizedTensor, packed: Array | None) -> QuantizedTensor:
    """q with its codes there, or on the device that its operand is to name."""
    arrays = (q._scales, q._scale_element, q._offsets, q.codebook)
    return QuantizedTensor._make(q.shape, q.bits, q.group_size, packed, *arrays)


def _usual_dtype(q: QuantizedTensor) -> torch.dtype:
    if torch.get_default_dtype() in _CODES:
        return torch.get_default_dtype()
    return torch.bfloat16 if q._scale_element is BF16 else torch.float16


def weight_of(q: QuantizedTensor) -> Packed | Tiled:
    """Made when it is first asked for."""
    if q._operand is None:
        q._operand = Packed(q)
    return q._operand


def checked(
    x: torch.Tensor, bias: torch.Tensor | None, weight: Packed | Tiled
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The arguments of a multiply, in the dtype that autocast wants them in."""
    kind, k = weight.kind, weight.k  # asking a device for its type takes longer than all the rest
    if x.device != weight.device:
        raise ValueError(f"gemm: x: expected a tensor on {weight.device} as the weight is, found one on {x.device}")
    if bias is not None and not isinstance(bias, torch.Tensor):
        raise TypeError(f"gemm: bias: expected a torch tensor as x is, found {type(bias).__name__}")
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x = x.to(dtype) if x.dtype in _DTYPES["cpu"] else x
        bias = bias.to(dtype) if bias is not None and bias.dtype in _DTYPES["cpu"] else bias
    if x.dtype not in _DTYPES[kind]:
        raise TypeError(f"gemm: x: expected {_NAMES[kind]}, found {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != k:
        raise ValueError(f"gemm: x: expected shape [..., {k}], found {list(x.shape)}")
    if bias is not None:
        if bias.dtype != x.dtype or bias.device != x.device:
            expected, found = f"{x.dtype} on {x.device} as x is", f"{bias.dtype} on {bias.device}"
            raise TypeError(f"gemm: bias: expected {expected}, found {found}")
        if bias.shape != (weight.n,):
            raise ValueError(f"gemm: bias: expected shape [{weight.n}], found {list(bias.shape)}")
    return x, bias


def tensor_of(array: Array) -> torch.Tensor:
    """A tensor that is an array of the format (uint16 stands for bf16), which may be read-only: nobody writes to it."""
    tensor = torch.from_numpy(seemingly_writable(array))
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


# --- What PyTorch asks of the operators: shapes without data, and gradients of x and bias. ---


@torch.library.register_fake("flute::gemm")
@torch.library.register_fake("flute::gemm_forward")
def _(x: Any, packed: Any, scales: Any, codebook: Any, offsets: Any, bias: Any, bits: int, group_size: int) -> Any:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


@torch.library.register_fake("flute::gemm_transposed")
def _(y: Any, packed: Any, scales: Any, codebook: Any, offsets: Any, bits: int, group_size: int) -> Any:
    return y.new_empty((*y.shape[:-1], packed.shape[1] // bits * 32))


@torch.library.register_fake("flute::gemm_tiled")
@torch.library.register_fake("flute::gemm_tiled_forward")
def _(
    x: Any, codes: Any, scales: Any, codebooks: Any, bias: Any, rows: list[int], k: int, bits: int, group_size: int
) -> Any:
    return x.new_empty((*x.shape[:-1], sum(rows)))


@torch.library.register_fake("flute::gemm_tiled_transposed")
def _(y: Any, codes: Any, scales: Any, codebooks: Any, rows: list[int], k: int, bits: int, group_size: int) -> Any:
    return y.new_empty((*y.shape[:-1], k))


def _register_gradient(operator: str, transposed: Any, tensors: int, bias_at: int) -> None:
    """Of an operator of x, as many tensors of the weight, then bias, then sizes."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        weight = inputs[1 : 1 + tensors]
        ctx.save_for_backward(*(tensor for tensor in weight if tensor is not None))
        ctx.are_there = [tensor is not None for tensor in weight]
        ctx.sizes, ctx.count = inputs[bias_at + 1 :], len(inputs)

    def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        weight = [next(saved) if there else None for there in ctx.are_there]
        gradients: list[Any] = [None] * ctx.count
        if ctx.needs_input_grad[0]:
            gradients[0] = transposed(gradient, *weight, *ctx.sizes)
        if ctx.needs_input_grad[bias_at]:
            gradients[bias_at] = gradient.sum_to_size(gradient.shape[-1:])
        return tuple(gradients)

    torch.library.register_autograd(operator, backward, setup_context=setup)


_register_gradient("flute::gemm", torch.ops.flute.gemm_transposed, 4, 5)
_register_gradient("flute::gemm_tiled", torch.ops.flute.gemm_tiled_transposed, 3, 4)
