"""Tensors on a GPU: flute.gemm, flute.Linear and models there, against float64.

Needs a GPU that PyTorch can use, a library with the CUDA backend, and what test_package_torch.py needs.
"""

import copy
import gc
import io
import os
import pickle
import subprocess
import sys

import flute
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not flute.library_path.with_name("libflute_torch.so").exists():
    pytest.skip(f"no PyTorch operator beside {flute.library_path}", allow_module_level=True)
if not torch.cuda.is_available():
    pytest.skip("no GPU that PyTorch can use", allow_module_level=True)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {torch.float16: 5e-4, torch.bfloat16: 4e-3}  # of the whole result, relative, in Frobenius norm
OTHER = {torch.float16: torch.bfloat16, torch.bfloat16: torch.float16}
CUDA = torch.device("cuda", 0)


def example(bits=4, group_size=64, scale_dtype="fp16", n=96, k=128, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, k), np.float32)
    table = np.sort(rng.standard_normal(1 << bits)).astype(np.float32)
    return flute.quantize(values, codebook=table, group_size=group_size, scale_dtype=scale_dtype)


def matrix_of(q, dtype):
    """What q stands for in that dtype, in float64 on the GPU: rn(rn(codebook[code]) * rn(scale))."""
    table, scales = (torch.from_numpy(np.array(part, np.float32)).to(dtype) for part in (q.codebook, q.scales))
    size = q.k if q.group_size < 0 else q.group_size
    scales = scales.repeat_interleave(size, 1)[:, : q.k]
    return (table[torch.from_numpy(q.codes()).long()] * scales).double().to(CUDA)


def close(found, exact, dtype):
    return (found.double() - exact).norm() <= TOLERANCE[dtype] * exact.norm() + 1e-6


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_products(bits, group_size, dtype):
    for scale_dtype, n, k in (("fp16", 96, 128), ("fp32", 37, 96), ("fp16", 520, 1056)):
        q = example(bits, group_size, scale_dtype, n, k)
        there, weight = q.to(CUDA, dtype), matrix_of(q, dtype)
        assert torch.equal(flute.gemm(torch.eye(k, dtype=dtype, device=CUDA), there).double(), weight.T)
        bias = torch.randn(n, device=CUDA).to(dtype)
        for shape in ((k,), (0, k), (1, k), (2, 3, k), (4, 0, k), (33, k), (200, k)):
            x = torch.randn(shape, device=CUDA).to(dtype)
            y = flute.gemm(x, there, bias)
            assert y.shape == (*shape[:-1], n) and y.dtype == dtype and y.device == CUDA
            assert close(y, x.double() @ weight.T + bias.double(), dtype)
            assert torch.equal(y, flute.gemm(x, there, bias))


def test_any_strides_and_alignment():
    q = example().to(CUDA)
    plain = torch.randn(6, 128, device=CUDA).half()
    expected = flute.gemm(plain, q)
    wide = torch.zeros(6, 131, device=CUDA).half()
    wide[:, 3:] = plain
    misplaced = torch.zeros(6 * 128 + 1, device=CUDA).half()
    misplaced[1:] = plain.flatten()
    for x in (wide[:, 3:], plain.T.contiguous().T, misplaced[1:].view(6, 128)):
        assert torch.equal(flute.gemm(x, q), expected)


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("scale_dtype", ["fp32", "fp16"])
def test_what_a_file_holds_comes_back(bits, scale_dtype):
    """Codes from the GPU's layout, scales and codebook as they were, whatever the activations' dtype."""
    q = example(bits, 64, scale_dtype, 77, 416)
    layer = flute.Linear(q, torch.randn(77))
    before = layer.state_dict()
    for move in (lambda: layer.to(CUDA), layer.half, layer.bfloat16, lambda: layer.to("cuda"), layer.cpu):
        move()
        after = layer.state_dict()
        assert list(after) == list(before)
        for name in before:
            if name != "bias":
                assert torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype
    np.testing.assert_array_equal(q.to(CUDA).to("cpu").codes(), q.codes())
    np.testing.assert_array_equal(q.to(CUDA).dequantize(), q.dequantize())


def test_the_weight_is_there_once():
    """As many bytes on the device as the file has, and padding; nothing is left of the move."""
    q = example(4, 128, n=4096, k=4096)
    gc.collect()
    before = torch.cuda.memory_allocated()
    layer = flute.Linear(q).to(CUDA, torch.float16)
    grown = torch.cuda.memory_allocated() - before
    assert q.nbytes <= grown <= q.nbytes * 1.01 + 20000
    assert layer.quantized._packed is None and layer.quantized.device == "cuda:0"
    layer(torch.ones(1, 4096, device=CUDA).bfloat16())  # scales of another dtype are added, codes are not
    assert torch.cuda.memory_allocated() - before - grown <= q._scales.nbytes * 1.1 + 20000
    del layer
    gc.collect()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(128,), (3, 128), (2, 0, 128), (2, 3, 128)])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_gradients(bits, dtype, shape):
    q = example(bits, 32)
    weight = matrix_of(q, dtype)
    x = torch.randn(shape, device=CUDA).to(dtype).requires_grad_()
    bias = torch.randn(96, device=CUDA).to(dtype).requires_grad_()
    y = flute.gemm(x, q.to(CUDA, dtype), bias)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    assert x.grad.shape == x.shape and close(x.grad, upstream.double() @ weight, dtype)
    torch.testing.assert_close(bias.grad, upstream.reshape(-1, 96).sum(0))
    values = q.to(CUDA, dtype)._operand.stack.of(dtype)
    eye = torch.eye(96, device=CUDA).to(dtype)
    codes = q.to(CUDA, dtype)._operand.stack.codes
    back = torch.ops.flute.gemm_tiled_transposed(eye, codes, *values, [96], 128, bits, 32)
    assert torch.equal(back.double(), weight)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(128,), (0, 128), (2, 3, 128)])
def test_opcheck(dtype, shape):
    weight = example().to(CUDA, dtype)._operand.stack
    tensors = weight.codes, *weight.of(dtype)
    x, bias = (torch.randn(size, device=CUDA).to(dtype).requires_grad_() for size in (shape, (96,)))
    for given in (bias, None):
        torch.library.opcheck(torch.ops.flute.gemm_tiled.default, (x, *tensors, given, *weight.sizes))
    y = torch.randn(*shape[:-1], 96, device=CUDA).to(dtype)
    torch.library.opcheck(torch.ops.flute.gemm_tiled_transposed.default, (y, *tensors, *weight.sizes))


def test_stacked_matrices_have_a_table_each():
    """Filled from a device's memory, as vLLM does, or from the host's."""
    from flute import _operator

    parts = [example(3, 64, n=64, seed=1), example(3, 64, n=32, seed=2), example(3, 64, n=21, seed=3)]
    x = torch.randn(5, 128, device=CUDA).half()
    expected = torch.cat([flute.gemm(x, q.to(CUDA)) for q in parts], -1)
    sizes = _operator.Sizes([64, 32, 21], 128, 3, 64)
    for place in (CUDA, "cpu"):
        arrays = [(q.packed.view(np.int32), q.scales, q.codebook) for q in parts]
        tensors = [[torch.from_numpy(np.array(array)).to(place) for array in part] for part in arrays]
        segments = [_operator.packed_view(*part, sizes) for part in tensors]
        codes, values = _operator.tile(sizes, segments, CUDA, torch.float16)
        y = torch.ops.flute.gemm_tiled(x, codes, *values, None, *sizes)
        assert torch.equal(y, expected)


def three_layers(bits=4):
    """Layers of one input, and the same again, stacked."""
    alone = [flute.Linear(example(bits, n=n, seed=n)).to(CUDA, torch.float16) for n in (96, 32, 33)]
    together = copy.deepcopy(alone)
    flute.stack(*together)
    return torch.nn.ModuleList(alone), torch.nn.ModuleList(together)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_a_stack_of_layers_is_those_layers(bits):
    """The same products (sums may be of another order), gradients and state_dict, in one multiply; moved or copied they
    are single again."""
    alone, together = three_layers(bits)
    state = alone.state_dict()

    def same(found, expected):
        return close(found, expected.double(), found.dtype)

    for tokens in (1, 5, 200):
        x = torch.randn(tokens, 128, device=CUDA).half()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for layer, other in zip(together, alone, strict=True):
                assert same(layer(x), other(x))
        calls = {event.key: event.count for event in profile.key_averages()}
        assert calls["flute::gemm_tiled_forward"] == 1 + 3
        grown, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
        sum(layer(grown).float().square().sum() for layer in together).backward()
        sum(layer(plain).float().square().sum() for layer in alone).backward()
        torch.testing.assert_close(grown.grad, plain.grad, rtol=2e-2, atol=2e-2 * plain.grad.abs().max().item())
    for name, tensor in together.state_dict().items():
        assert torch.equal(tensor, state[name])
    buffers = sum(buffer.nbytes for buffer in together.buffers())
    assert buffers < 1.05 * sum(buffer.nbytes for buffer in alone.buffers())
    x = torch.randn(3, 128, device=CUDA).half()
    bias = torch.randn(32, device=CUDA).half()
    assert same(flute.gemm(x, together[1].quantized, bias), flute.gemm(x, alone[1].quantized, bias))
    assert same(together[2](x.bfloat16()), alone[2](x.bfloat16()))
    for moved in (copy.deepcopy(together), together.to("cpu").to(CUDA, torch.float16)):
        for layer, other in zip(moved, alone, strict=True):
            assert same(layer(x), other(x))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_stack_in_a_compiled_graph(mode):
    alone, together = three_layers()

    def product(x):
        return torch.cat([layer(x) for layer in together], -1)

    compiled = torch.compile(product, fullgraph=True, mode=mode)
    with torch.inference_mode():
        for _ in range(4):
            x = torch.randn(1, 128, device=CUDA).half()
            assert close(compiled(x).clone(), torch.cat([layer(x) for layer in alone], -1).double(), x.dtype)


@pytest.mark.parametrize("tokens", [1, 16, 100])
def test_the_first_call_may_be_captured(tokens):
    layer, x = flute.Linear(example(), torch.randn(96)).to(CUDA, torch.float16), torch.randn(tokens, 128, device=CUDA)
    x, graph = x.half(), torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        y = layer(x)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        with torch.inference_mode():
            assert torch.equal(y, layer(x))
            y.zero_()


def test_the_current_stream_is_used():
    """A product after a slow kernel on a stream of its own sees what that wrote."""
    q, side = example(n=64, k=64).to(CUDA), torch.cuda.Stream()
    x = torch.zeros(4, 64, device=CUDA).half()
    ones = torch.ones_like(x)
    expected = flute.gemm(ones, q)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        x.copy_(ones)
        y = flute.gemm(x, q)
    side.synchronize()
    assert torch.equal(y, expected)


def test_compile_in_one_graph():
    layers = torch.nn.Sequential(flute.Linear(example(), torch.randn(96)), torch.nn.SiLU()).to(CUDA, torch.bfloat16)
    compiled = torch.compile(layers, fullgraph=True, dynamic=True)
    for shape in ((5, 128), (2, 7, 128), (2, 128)):
        x = torch.randn(shape, device=CUDA).bfloat16()
        torch.testing.assert_close(compiled(x), layers(x))
    x = torch.randn(3, 128, device=CUDA).bfloat16().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(layers(x).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=2e-2, atol=2e-2)


def test_compiled_graphs_leave_the_weight_where_it_is():
    """CUDA graphs of torch.compile: the weight is an input that stays, not one that is copied into every replay."""
    q = example(4, 128, n=2048, k=2048)
    layer = flute.Linear(q).to(CUDA, torch.float16)
    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    x = torch.randn(2, 2048, device=CUDA).half()
    with torch.inference_mode():
        for _ in range(4):
            assert torch.equal(compiled(x).clone(), layer(x))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            compiled(x)
            torch.cuda.synchronize()
    moved = sum(event.self_device_time_total for event in profile.key_averages() if "memcpy" in event.key.lower())
    assert moved < 20, [(event.key, event.self_device_time_total) for event in profile.key_averages()]


def test_inference_mode_and_export():
    layer, x = flute.Linear(example()).to(CUDA, torch.float16), torch.randn(4, 128, device=CUDA).half()
    with torch.inference_mode():
        assert torch.equal(layer(x), layer(x.clone()))
        made_there = example().to(CUDA)
    grown = x.clone().requires_grad_()
    flute.gemm(grown, made_there).sum().backward()
    assert grown.grad is not None
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, (x,)), file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(x), layer(x))


def test_an_exported_program_runs_in_another_process(tmp_path):
    layer, x = flute.Linear(example(3), torch.randn(96)).to(CUDA, torch.float16), torch.randn(4, 128, device=CUDA)
    x = x.half()
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "layer.pt2")
    torch.save((x, layer(x).detach()), tmp_path / "example.pt")
    code = (
        "import flute, torch\nflute.Linear\n"
        f"x, y = torch.load({str(tmp_path / 'example.pt')!r})\n"
        f"program = torch.export.load({str(tmp_path / 'layer.pt2')!r})\n"
        "assert torch.equal(program.module()(x), y)"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "FLUTE_LIBRARY": str(flute.library_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_copies():
    layer, x = flute.Linear(example(), torch.randn(96)).to(CUDA, torch.bfloat16), torch.randn(2, 128, device=CUDA)
    x = x.bfloat16()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.quantized.device == "cuda:0" and torch.equal(other(x), layer(x))
    q = pickle.loads(pickle.dumps(layer.quantized))
    assert q.device == "cpu" and torch.equal(flute.gemm(x, q.to(CUDA), layer.bias), layer(x))


def test_loading_a_state_dict_keeps_the_place():
    layer = flute.Linear(example()).to(CUDA, torch.bfloat16)
    source = flute.Linear(example(2, 32, seed=5))
    layer.load_state_dict(source.state_dict())
    x = torch.randn(2, 128, device=CUDA).bfloat16()
    assert layer.quantized.device == "cuda:0" and layer.quantized.bits == 2
    assert torch.equal(layer(x), flute.gemm(x, source.quantized.to(CUDA)))


@pytest.mark.parametrize("inner", DTYPES.values(), ids=DTYPES)
def test_autocast_computes_in_its_dtype(inner):
    layer = flute.Linear(example(), torch.randn(96)).to(CUDA)
    x = torch.randn(3, 128, device=CUDA, requires_grad=True)
    with torch.autocast("cuda", dtype=inner):
        y, again = layer(x), layer(x.detach().to(inner))
    assert y.dtype == inner and torch.equal(y, again)
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0 and layer.bias.grad is not None


def test_a_model_on_the_gpu_is_quantized_there():
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 64)).to(CUDA).bfloat16()
    weight = model[0].weight.detach().double()
    flute.quantize_model(model)
    assert model[0].quantized.device == "cuda:0"
    x = torch.randn(3, 64, device=CUDA).bfloat16()
    assert model(x).shape == (3, 64)
    assert (matrix_of(model[0].quantized, torch.bfloat16) - weight).norm() < 0.15 * weight.norm()


def per_row():
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(16, size=(32, 64)), np.ones((32, 1), np.float16)
    return flute.QuantizedTensor.from_codes(codes, rng.standard_normal((32, 16)), scales)


def with_offsets():
    scales = np.ones((32, 1), np.float16)
    return flute.QuantizedTensor.from_codes(np.zeros((32, 64), int), np.arange(16.0), scales, offsets=scales)


Q, THERE = example(), example().to(CUDA)
X = torch.ones(2, 128, device=CUDA).half()
HOST = X.cpu()
FLAT = THERE._operand.stack.codes, *THERE._operand.stack.of(torch.float16)
SIZES = [96], 128, 4, 64
OP, OP_T = torch.ops.flute.gemm_tiled, torch.ops.flute.gemm_tiled_transposed
BAD = [
    (lambda: flute.gemm(X, Q), ValueError, "gemm: x: expected a tensor on cpu as the weight is, found one on cuda:0"),
    (lambda: flute.gemm(HOST, THERE), ValueError, "gemm: x: expected a tensor on cuda:0 as the weight.*on cpu"),
    (lambda: flute.gemm(HOST.numpy(), THERE), ValueError, "gemm: x: expected a torch tensor on cuda:0 as q is"),
    (lambda: flute.gemm(X.float(), THERE), TypeError, "gemm: x: expected float16 or bfloat16, found torch.float32"),
    (lambda: flute.gemm(X[:, :64], THERE), ValueError, r"gemm: x: expected shape \[..., 128\], found \[2, 64\]"),
    (lambda: flute.gemm(X, THERE, HOST[0, :96]), TypeError, "gemm: bias: expected torch.float16 on cuda:0.*on cpu"),
    (lambda: flute.gemm(X, THERE, X[0, :96].float()), TypeError, "gemm: bias: expected torch.float16.*torch.float32"),
    (lambda: flute.gemm(X, THERE, X[0]), ValueError, r"gemm: bias: expected shape \[96\], found \[128\]"),
    (lambda: example(8).to(CUDA), flute.Error, "to: matrix: CUDA multiplies 2, 3 and 4 bits, found 8"),
    (lambda: per_row().to(CUDA), flute.Error, "to: matrix: segment 0: CUDA takes no codebook per row"),
    (lambda: with_offsets().to(CUDA), flute.Error, "to: matrix: segment 0: CUDA takes no offsets"),
    (lambda: Q.to("cuda:77"), (flute.Error, RuntimeError), "(?i)device|ordinal"),
    (lambda: OP(HOST, *FLAT, None, *SIZES), RuntimeError, "x: expected a tensor on a CUDA device"),
    (lambda: OP(X, FLAT[0].cpu(), *FLAT[1:], None, *SIZES), RuntimeError, "codes: expected a tensor on CUDA device 0"),
    (lambda: OP(X, FLAT[0][1:], *FLAT[1:], None, *SIZES), RuntimeError, "codes: expected .* bytes"),
    (lambda: OP(X, *FLAT, None, [64], 128, 4, 64), RuntimeError, "codes: expected .* bytes"),
    (lambda: OP(X, *FLAT, None, [], 128, 4, 64), RuntimeError, "rows: expected 1..4 matrices, found 0"),
    (lambda: OP(X, *FLAT, None, [95, 1], 128, 4, 64), RuntimeError, "segment 0: expected a multiple of 32 rows"),
    (lambda: OP(X, *FLAT, None, [96], 128, 5, 64), RuntimeError, "bits: expected 2, 3 or 4, found 5"),
    (lambda: OP(X, *FLAT, None, [96], 128, 4, 48), RuntimeError, "group size 32, 64, 128, 256 or -1, found 48"),
    (lambda: OP(X, *FLAT, None, [96], 96, 4, 64), RuntimeError, "x: expected a last dimension of 96, found 128"),
    (lambda: OP(X.bfloat16(), *FLAT, None, *SIZES), RuntimeError, "x: expected the dtype of scales"),
    (lambda: OP(X, *FLAT, X[0, :9], *SIZES), RuntimeError, "bias: expected 96 values, found 9"),
    (lambda: OP_T(X, *FLAT, *SIZES), RuntimeError, "y: expected a last dimension of 96, found 128"),
]


@pytest.mark.parametrize("call,error,message", BAD, ids=[f"{i}-{case[2][:40]}" for i, case in enumerate(BAD)])
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert torch.isfinite(flute.gemm(X, THERE)).all()  # the device goes on working


def test_another_dtype_is_not_made_under_capture():
    layer, x = flute.Linear(example()).to(CUDA, torch.float16), X.bfloat16()
    with pytest.raises(TypeError, match="expected torch.float16, which the weight was moved"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            layer(x)
    torch.cuda.synchronize()
    assert torch.isfinite(layer(x)).all()
