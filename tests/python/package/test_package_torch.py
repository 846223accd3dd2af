"""flute.gemm of torch tensors and flute.Linear: what autograd, compile and state_dict expect of them.

Needs PyTorch 2.10 or later and the operator: cmake build -DFLUTE_TORCH_INCLUDE=<its include folder>, or the wheel of
pip install --no-build-isolation.
"""

import copy
import os
import pickle
import signal
import subprocess
import sys

import cases
import flute
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not flute.library_path.with_name("libflute_torch.so").exists():
    pytest.skip(f"no PyTorch operator beside {flute.library_path}", allow_module_level=True)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
dtypes = st.sampled_from(list(DTYPES))


def in_another_process(code):
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "FLUTE_LIBRARY": str(flute.library_path)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def matrix_of(q, dtype="fp32"):
    """What q stands for in that dtype, as float64."""
    return torch.from_numpy(cases.dequantized(q, dtype)).double()


def example(bits=4, scale_dtype="fp16", seed=0):
    rng = np.random.default_rng(seed)
    return flute.quantize(rng.standard_normal((96, 128), np.float32), bits, scale_dtype=scale_dtype)


def raw(q):
    """The operator's tensors of a weight on the CPU."""
    flute.gemm(torch.zeros(1, q.k), q)
    return q._operand.tensors


@settings(max_examples=30)
@given(cases.seeds, cases.tensors(), dtypes, st.lists(st.integers(0, 5), max_size=3), st.booleans(), st.booleans())
def test_products_are_those_of_numpy(seed, case, dtype, leading, with_bias, transposed):
    """Any leading dimensions, zero tokens, any strides: the same bits as for an array in fp32 and fp16."""
    q = case[0]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*leading, q.k, generator=generator).to(DTYPES[dtype])
    if transposed:
        x = x.movedim(-1, 0).contiguous().movedim(0, -1)
    bias = torch.randn(q.n, generator=generator).to(x.dtype) if with_bias else None
    y = flute.gemm(x, q, bias)
    assert y.dtype == x.dtype and y.shape == (*leading, q.n)
    if dtype != "bf16":
        array = flute.gemm(x.numpy(), q, None if bias is None else bias.numpy())
        np.testing.assert_array_equal(y.numpy(), array)
    else:
        # Each of the two roundings of a weight and that of the result, of what all terms may add up to.
        terms = x.double().abs() @ (matrix_of(q).abs() + 10).T + (0 if bias is None else bias.double().abs())
        exact = x.double() @ matrix_of(q, dtype).T + (0 if bias is None else bias.double())
        assert ((y.double() - exact).abs() <= 3 * cases.UNIT_ROUNDOFF["bf16"] * terms + 1e-30).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_identity_returns_the_matrix_bit_for_bit(dtype):
    q = example()
    assert torch.equal(flute.gemm(torch.eye(128, dtype=DTYPES[dtype]), q).T.double(), matrix_of(q, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(128,), (3, 128), (2, 0, 128), (2, 3, 128)])
def test_gradients(dtype, shape):
    q = example()
    x = torch.randn(shape).to(DTYPES[dtype]).requires_grad_()
    bias = torch.randn(96).to(x.dtype).requires_grad_()
    y = flute.gemm(x, q, bias)
    upstream = torch.randn(y.shape).to(x.dtype)
    y.backward(upstream)
    exact = upstream.double() @ matrix_of(q, dtype)
    terms = upstream.double().abs() @ matrix_of(q, dtype).abs()
    # PyTorch's product of 96 terms, in its own order; each step may round to the dtype.
    assert ((x.grad.double() - exact).abs() <= 96 * cases.UNIT_ROUNDOFF[dtype] * terms + 1e-6).all()
    assert x.grad.shape == x.shape
    torch.testing.assert_close(bias.grad, upstream.reshape(-1, 96).sum(0))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(128,), (0, 128), (2, 3, 128)])
def test_opcheck(dtype, shape):
    q = example()
    weight = raw(q)
    x, bias = torch.randn(shape).to(dtype).requires_grad_(), torch.randn(96).to(dtype).requires_grad_()
    for added in (bias, None):
        torch.library.opcheck(torch.ops.flute.gemm.default, (x, *weight, added, 4, 64))
    y = torch.randn(*shape[:-1], 96).to(dtype)
    torch.library.opcheck(torch.ops.flute.gemm_transposed.default, (y, *weight, 4, 64))


def test_compile_in_one_graph():
    layers = torch.nn.Sequential(flute.Linear(example(), torch.randn(96)), torch.nn.SiLU()).eval()
    compiled = torch.compile(layers, fullgraph=True, dynamic=True)
    for shape in ((5, 128), (2, 7, 128), (2, 128)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), layers(x))
    x = torch.randn(3, 128, requires_grad=True)
    (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(layers(x).sum(), x)
    torch.testing.assert_close(gradient, expected)

    q = example(3)
    flute.gemm(torch.zeros(1, 128), q)
    product = torch.compile(lambda x: flute.gemm(x, q) + 1, fullgraph=True)
    torch.testing.assert_close(product(x), flute.gemm(x, q) + 1)


def test_inference_mode_and_export():
    layer, x = flute.Linear(example()), torch.randn(4, 128)
    with torch.inference_mode():
        assert torch.equal(layer(x), layer(x.clone()))
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_an_exported_program_runs_in_another_process(tmp_path):
    layer, x = flute.Linear(example(3), torch.randn(96)), torch.randn(4, 128)
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "layer.pt2")
    torch.save((x, layer(x)), tmp_path / "example.pt")
    done = in_another_process(
        "import flute, torch\nflute.Linear\n"
        f"x, y = torch.load({str(tmp_path / 'example.pt')!r})\n"
        f"program = torch.export.load({str(tmp_path / 'layer.pt2')!r})\n"
        "assert torch.equal(program.module()(x), y)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_state_dict_has_the_names_of_the_format(scale_dtype):
    q = example(3, scale_dtype)
    layer = flute.Linear(q, torch.randn(96))
    state = layer.state_dict()
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    assert shapes == {
        "bias": (torch.float32, (96,)),
        "weight_packed": (torch.int32, (96, 12)),
        "weight_scale": (DTYPES[scale_dtype], (96, 2)),
        "weight_codebook": (torch.float32, (8,)),
    }
    # Into a layer of other bits and groups, below another module.
    rng = np.random.default_rng(1)
    other = torch.nn.Sequential(
        flute.Linear(flute.quantize(rng.standard_normal((96, 128), np.float32)), torch.zeros(96))
    )
    assert not any(other.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()}))
    x = torch.randn(2, 128)
    assert torch.equal(other(x), layer(x))
    assert (other[0].quantized.bits, other[0].quantized.group_size) == (3, 64)


def test_offsets_and_a_table_a_row_in_a_state_dict():
    rng = np.random.default_rng(2)
    q = flute.QuantizedTensor.from_codes(
        rng.integers(16, size=(5, 64)),
        rng.standard_normal((5, 16)),
        rng.uniform(1, 2, (5, 1)).astype(np.float16),
        group_size=64,
        offsets=rng.standard_normal((5, 1)).astype(np.float16),
    )
    layer, x = flute.Linear(q), torch.randn(3, 64)
    other = flute.Linear(flute.quantize(np.ones((5, 64), np.float32)))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x)) and other.quantized.group_size == 64


def test_copies_and_dtypes_leave_the_weight_as_it_is():
    layer, x = flute.Linear(example(), torch.randn(96)), torch.randn(2, 128)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    before = layer.state_dict()
    layer.half()
    assert layer(x.half()).dtype == torch.float16
    for name, tensor in layer.state_dict().items():
        assert name == "bias" or torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype


def test_a_state_dict_that_does_not_fit():
    layer = flute.Linear(example())
    state, x = layer.state_dict(), torch.randn(2, 128)
    y = layer(x)
    for change, message in (
        (
            {"weight_packed": state["weight_packed"][:5]},
            r"weight_packed: expected torch.int32 \[96, 128 \* bits / 32\]",
        ),
        ({"weight_packed": state["weight_packed"].float()}, "weight_packed: expected torch.int32"),
        ({"weight_scale": state["weight_scale"][:, :0]}, "scales: expected a column"),
        ({"weight_scale": state["weight_scale"] * np.inf}, "scales: expected finite"),
        ({"weight_codebook": state["weight_codebook"][:8]}, r"codebook: expected shape \[16\]"),
        ({"weight": state["weight_scale"]}, "Unexpected key"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**state, **change})
    with pytest.raises(RuntimeError, match="Missing key.*weight_scale"):
        layer.load_state_dict({name: tensor for name, tensor in state.items() if name != "weight_scale"})
    assert torch.equal(layer(x), y)


Q, X = example(), torch.ones(2, 128)
flute.Linear  # noqa: B018  # which loads the operators
OP, OP_T = torch.ops.flute.gemm, torch.ops.flute.gemm_transposed
BAD = [
    (lambda: flute.gemm(X.double(), Q), TypeError, "gemm: x: expected float32.*found torch.float64"),
    (lambda: flute.gemm(X[:, :64], Q), ValueError, r"gemm: x: expected shape \[..., 128\], found \[2, 64\]"),
    (lambda: flute.gemm(torch.ones(()), Q), ValueError, r"gemm: x: expected shape \[..., 128\], found \[\]"),
    (lambda: flute.gemm(X.to("meta"), Q), ValueError, "gemm: x: expected a tensor on cpu as the weight.*on meta"),
    (lambda: flute.gemm(X, Q, torch.ones(3)), ValueError, r"gemm: bias: expected shape \[96\], found \[3\]"),
    (lambda: flute.gemm(X, Q, torch.ones(96).half()), TypeError, "gemm: bias: expected torch.float32.*torch.float16"),
    (lambda: flute.gemm(X, Q, np.ones(96)), TypeError, "gemm: bias: expected a torch tensor as x is, found ndarray"),
    (lambda: flute.gemm(X, X), TypeError, "gemm: q: expected a QuantizedTensor, found Tensor"),
    (lambda: flute.Linear(X), TypeError, "Linear: q: expected a QuantizedTensor, found Tensor"),
    (lambda: flute.Linear(Q, X), ValueError, r"Linear: bias: expected shape \[96\], found \[2, 128\]"),
    (lambda: Q.to("meta"), ValueError, "to: device: expected the CPU or a CUDA device, found meta"),
    (lambda: Q.to("nowhere"), ValueError, "to: device: expected the CPU or a CUDA device, found 'nowhere'"),
    (lambda: Q.to("cpu", torch.float64), TypeError, "to: dtype: expected float16 or bfloat16, found torch.float64"),
    (lambda: flute.Linear(Q).to("meta"), ValueError, "to: device: expected the CPU or a CUDA device, found meta"),
    (lambda: OP(X[:, 1:], *raw(Q), None, 4, 64), RuntimeError, "x: expected a last.*128, found 127"),
    (lambda: OP(X.int(), *raw(Q), None, 4, 64), RuntimeError, "x: expected float32"),
    (lambda: OP(X, *raw(Q), X, 4, 64), RuntimeError, "bias: expected a vector, found 2"),
    (lambda: OP(X, *raw(Q), X[0], 4, 64), RuntimeError, "bias: expected 96 values, found 128"),
    (lambda: OP(X, *raw(Q), None, 9, 64), RuntimeError, "bits: expected 1..8, found 9"),
    (lambda: OP(X, *raw(Q), None, 4, 0), RuntimeError, r"scales: expected shape \[96, 1\]"),
    (lambda: OP(X, *raw(Q), None, 4, 48), RuntimeError, r"scales: expected shape \[96, 3\]"),
    (lambda: OP(X, *raw(Q), None, 3, 64), RuntimeError, r"packed: expected int32 \[N, K \* 3 / 32\]"),
    (lambda: OP(X, raw(Q)[0].float(), *raw(Q)[1:], None, 4, 64), RuntimeError, "packed: expected int32"),
    (lambda: OP(X, raw(Q)[0][:, :0], *raw(Q)[1:], None, 4, 64), RuntimeError, "packed: expected int32"),
    (lambda: OP(X, raw(Q)[0][:9], *raw(Q)[1:], None, 4, 64), RuntimeError, r"scales: expected shape \[9, 2\]"),
    (lambda: OP_T(X, *raw(Q), 4, 64), RuntimeError, "y: expected a last.*96"),
]


@pytest.mark.parametrize("call,error,message", BAD, ids=[f"{i}-{case[2][:40]}" for i, case in enumerate(BAD)])
def test_bad_arguments(call, error, message):
    flute.gemm(X, Q)
    with pytest.raises(error, match=message):
        call()


@settings(max_examples=20)
@given(cases.tensors(), dtypes)
def test_the_operator_needs_nothing_but_its_tensors(case, dtype):
    """Tensors that it has never seen give the bits of those that it knows, also where others were before."""
    q = case[0]
    x = torch.randn(3, q.k).to(DTYPES[dtype])
    expected = flute.gemm(x, q)
    for _ in range(2):
        weight = [None if part is None else part.clone() for part in raw(q)]
        assert torch.equal(OP(x, *weight, None, q.bits, q.group_size), expected)


def test_two_weights_may_share_their_codes():
    q = example()
    twin, other = pickle.loads(pickle.dumps(q)), example(seed=1)
    shared = flute.QuantizedTensor._make(
        q.shape, 4, 64, q._packed, other._scales, q._scale_element, None, other.codebook
    )
    expected = flute.gemm(X, flute.QuantizedTensor.from_packed(q.packed, other.codebook, other.scales, bits=4))
    for one in (q, shared):
        flute.gemm(X, one)
    assert torch.equal(flute.gemm(X, shared), expected)
    del shared
    assert torch.equal(flute.gemm(X, q), flute.gemm(X, twin))


def test_torch_is_imported_only_when_it_is_needed():
    code = (
        "import flute, sys, numpy as np\n"
        "q = flute.quantize(np.ones((4, 32), np.float32))\n"
        "assert 'torch' not in sys.modules\n"
        "layer = flute.Linear(q)\n"
        "assert 'torch' in sys.modules"
    )
    done = in_another_process(code)
    assert done.returncode == 0 and "Exception" not in done.stderr, done.stderr


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_multiplies():
    """It has none of its parent's threads; waiting for one would hang a data loader for ever."""
    q = flute.quantize(np.random.default_rng(3).standard_normal((256, 1024), np.float32))
    x = torch.randn(17, 1024)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = flute.gemm(x, q).numpy()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if np.array_equal(flute.gemm(x, q).numpy(), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


def test_a_models_linear_layers_are_quantized_in_place():
    """All but those named, each with its own settings; the model computes with what the codes stand for."""
    torch.manual_seed(3)
    block = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 64, bias=False))
    model = torch.nn.ModuleDict({"block": block, "head": torch.nn.Linear(64, 32)}).eval()
    weights = [block[0].weight.detach().clone(), block[2].weight.detach().clone()]
    settings = {"modules_to_not_convert": ["head"], "layers": {"block.2": {"bits": 2, "group_size": 32}}}
    assert flute.quantize_model(model, 3, **settings) is model
    assert type(model["head"]) is torch.nn.Linear and not model["block"][0].training
    for index, (bits, group_size) in ((0, (3, 64)), (2, (2, 32))):
        q = block[index].quantized
        expected = flute.quantize(weights[index // 2].numpy(), bits, group_size=group_size)
        np.testing.assert_array_equal(q.packed, expected.packed)
    x = torch.randn(5, 64)
    hidden = torch.nn.functional.gelu(x @ torch.from_numpy(block[0].quantized.dequantize()).T + block[0].bias)
    y = hidden @ torch.from_numpy(block[2].quantized.dequantize()).T
    torch.testing.assert_close(block(x), y, rtol=1e-5, atol=1e-5)


def test_a_layer_that_cannot_be_quantized_is_named():
    model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Linear(40, 8))
    with pytest.raises(ValueError, match=r"quantize_model: 1: .*32"):
        flute.quantize_model(model)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_computes_in_its_dtype(compiled):
    """As torch.nn.functional.linear: fp32 in, bf16 out, and a gradient in fp32."""
    layer = flute.Linear(example(), torch.randn(96))
    x = torch.randn(3, 128, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = (torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer)(x)
    assert y.dtype == torch.bfloat16
    expected = flute.gemm(x.detach().bfloat16(), layer.quantized, layer.bias.detach().bfloat16())
    assert torch.equal(y.detach(), expected)
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0 and layer.bias.grad is not None


def test_autocast_of_activations_that_are_cast_already():
    """As in the middle of a model: the bias is still fp32."""
    layer, x = flute.Linear(example(), torch.randn(96)), torch.randn(3, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x.bfloat16()), layer(x))


def test_a_weight_moves_where_it_is_and_no_further():
    q = example()
    assert q.to("cpu") is q and q.device == "cpu"
    if not torch.cuda.is_available():
        layer = flute.Linear(q)
        for move in (lambda: q.to("cuda"), lambda: layer.to("cuda")):
            with pytest.raises((flute.Error, RuntimeError, AssertionError), match="(?i)cuda|nvidia"):
                move()
        assert torch.equal(layer(X), flute.gemm(X, q))


@pytest.mark.parametrize("shape", [(128,), (2, 0, 128), (5, 128)])
def test_shapes_on_a_gpu_without_one(shape):
    """What torch.compile sees of the GPU's operators."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(shape, dtype=torch.float16, device="cuda")
        codes = torch.empty(10240, dtype=torch.uint8, device="cuda")
        scales, codebooks = x.new_empty(2240), x.new_empty(16)
        y = torch.ops.flute.gemm_tiled(x, codes, scales, codebooks, None, [64, 32], 128, 4, 64)
        assert y.shape == (*shape[:-1], 96) and y.dtype == x.dtype and y.device == x.device
        back = torch.ops.flute.gemm_tiled_transposed(y, codes, scales, codebooks, [64, 32], 128, 4, 64)
        assert back.shape == x.shape and back.dtype == x.dtype and back.device == x.device


class Stacked(torch.nn.Module):
    """Layers that share a product as those of a stack do, on the CPU."""

    def __init__(self, parts=3):
        from flute._operator import Turns

        super().__init__()
        self.layer = flute.Linear(example())
        self.turns, self.parts, self.products = Turns(parts), parts, 0

    def product(self, x):
        self.products += not torch.compiler.is_compiling()
        return self.layer(x)

    def take(self, index, x):
        y = self.turns.take(index, x, lambda: self.product(x))
        return y[..., 32 * index : 32 * (index + 1)]

    def forward(self, x):
        return torch.cat([self.take(index, x) for index in range(self.parts)], -1)


@pytest.mark.parametrize("inference", [False, True])
def test_layers_of_a_stack_multiply_once(inference):
    stack = Stacked()
    with torch.inference_mode(inference):
        for expected in (1, 2):
            x = torch.randn(2, 5, 128)
            assert torch.equal(stack(x), stack.layer(x))
            assert stack.products == expected and stack.turns._made is None


def test_layers_of_a_stack_in_another_order():
    """Each returns what it would alone: with another x, called twice, out of turn, after a change of x."""
    stack = Stacked()
    x, other = torch.randn(3, 128), torch.randn(3, 128)
    for index, argument in [(2, x), (0, x), (1, other), (1, x), (0, other), (0, other), (2, x), (1, other), (2, other)]:
        assert torch.equal(stack.take(index, argument), stack.layer(argument)[:, 32 * index : 32 * (index + 1)])
    stack.take(0, x)
    x += 1
    assert torch.equal(stack.take(1, x), stack.layer(x)[:, 32:64])


def test_gradients_through_a_stack():
    stack, x = Stacked(), torch.randn(4, 128, requires_grad=True)
    upstream = torch.randn(4, 96)
    (found,) = torch.autograd.grad(stack(x), x, upstream)
    (expected,) = torch.autograd.grad(stack.layer(x), x, upstream)
    torch.testing.assert_close(found, expected)


def test_a_stack_in_one_graph():
    """One multiply in a graph of the whole, for any number of calls; nothing of it is kept from one to the next."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(sum(node.target is torch.ops.flute.gemm.default for node in graph.graph.nodes))
        return graph.forward

    stack = Stacked()
    compiled = torch.compile(stack.forward, fullgraph=True, backend=backend)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(4, 128)
            assert torch.equal(compiled(x), stack.layer(x))
            assert stack.turns._made is None
    assert graphs == [1]
    x = torch.randn(4, 128)
    exported = torch.export.export(stack, (x,))
    assert torch.equal(exported.module()(x), stack.layer(x))
    assert sum(node.target is torch.ops.flute.gemm.default for node in exported.graph.nodes) == 1


def test_a_stack_on_a_gpu_without_one(monkeypatch):
    """Its layers make one product of all rows and return their parts, in what torch.compile sees of a GPU."""
    from flute import _operator
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.products += "gemm_tiled" in str(function)
            return function(*args, **(kwargs or {}))

    def tile(sizes, segments, device, dtype):
        codes, *values = (torch.empty(16, dtype=one, device=device) for one in (torch.uint8, dtype, dtype))
        return codes, _operator.Values(*values)

    monkeypatch.setattr(_operator, "tile", tile)
    rows = [96, 32, 33]
    rng = np.random.default_rng(0)
    qs = [flute.quantize(rng.standard_normal((n, 128), np.float32)) for n in rows]
    with FakeTensorMode():
        stack = _operator.Stack(qs, torch.device("cuda", 0), torch.float16)
        layers = []
        for index, q in enumerate(qs):
            one = _operator._with_codes(q, None)
            one._operand = _operator.Tiled(stack, index)
            layers.append(flute.Linear(one))
        x = torch.empty(2, 5, 128, dtype=torch.float16, device="cuda:0")
        for mode in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
            with mode, Count() as count:
                assert [tuple(layer(x).shape) for layer in layers] == [(2, 5, n) for n in rows]
            assert count.products == 1
        layers[1].bias = torch.nn.Parameter(torch.empty(32, dtype=torch.float16, device="cuda:0"))
        with Count() as count:
            assert layers[1](x).shape == (2, 5, 32)
        assert count.products == 1
    assert [one for one in torch.nn.ModuleList(layers).buffers() if one.dtype == torch.uint8] == [stack.codes]


def test_what_cannot_be_stacked():
    layer = flute.Linear(example())
    with pytest.raises(TypeError, match=r"stack: layers: expected flute\.Linear, found Linear"):
        flute.stack(layer, torch.nn.Linear(128, 96))
    for layers, message in [
        ((layer,), "expected 2 to 4, found 1"),
        ((layer, layer), "expected a CUDA device, found cpu"),
        ((layer, flute.Linear(example(3))), "expected the same in_features, bits, group size and device, found"),
    ]:
        with pytest.raises(ValueError, match=message):
            flute.stack(*layers)


def test_a_call_without_a_gradient_is_made_without():
    """The same bits; recorded only where something asks for a gradient."""
    q, x, bias = example(), torch.randn(3, 128), torch.randn(96, requires_grad=True)
    plain = flute.gemm(x, q)
    assert not plain.requires_grad
    assert torch.equal(flute.gemm(x.clone().requires_grad_(), q), plain)
    with torch.no_grad():
        assert not flute.gemm(x.clone().requires_grad_(), q).requires_grad
    assert flute.gemm(x, q, bias).requires_grad
    exported = torch.export.export(flute.Linear(q), (x,))
    assert any(node.target is torch.ops.flute.gemm.default for node in exported.graph.nodes)
