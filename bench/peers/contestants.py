"""What is compared: each class makes its own layout of the same weights and multiplies with it.

A contestant has a `name`; `formats` as (bits, group), or None for any quantized one; table(bits), the values that codes
stand for; and `tolerance`, the relative error that tells a wrong launch from rounding. prepare(weights) gives {variant:
launch}, of which the fastest counts; launch(i, x) multiplies with copy i on the current stream and returns y [m, n].
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import flute_library
import torch
from measure import DEVICE

PEER_TOLERANCE = 2e-3  # fp16 weights, sums and outputs of peers stay below 1e-3; a wrong layout gives about 1.4


def integers(bits):
    return torch.arange(2**bits, dtype=torch.float32) - 2 ** (bits - 1)


class Cublas:
    """torch.matmul in fp16."""

    name = "cuBLAS fp16"
    formats = [(16, None)]
    tolerance = PEER_TOLERANCE

    def table(self, bits):
        return torch.empty(0)

    def prepare(self, weights):
        out = {}

        def launch(i, x):
            if len(x) not in out:
                out[len(x)] = torch.empty((len(x), weights.n), dtype=x.dtype, device=DEVICE)
            return torch.matmul(x, weights.values[i].t(), out=out[len(x)])

        return {"": launch}


class Flute:
    """The kernels of libflute, with a table of random values."""

    formats = None  # any
    tolerance = 5e-4  # what the library promises
    tables = {}  # by bits

    def __init__(self, library, dependent_launch):
        self.name = "FLUTE" if dependent_launch else "FLUTE, plain launch"
        self._library = library
        self._flags = 0 if dependent_launch else flute_library.NO_DEPENDENT_LAUNCH

    def table(self, bits):
        if bits not in Flute.tables:
            Flute.tables[bits] = torch.empty(2**bits).uniform_(-1, 1).half().float()
        return Flute.tables[bits]

    def prepare(self, weights):
        torch.cuda.synchronize()  # a matrix is made from complete buffers
        pairs = zip(weights.codes, weights.scales, strict=True)
        table = self.table(weights.bits)
        matrices = [
            flute_library.Matrix(self._library, codes, scales, table, weights.bits, weights.group)
            for codes, scales in pairs
        ]
        buffers = {}

        def launch(i, x):
            stream = torch.cuda.current_stream()
            if len(x) not in buffers:
                y = torch.empty((len(x), weights.n), dtype=x.dtype, device=DEVICE)
                workspace = torch.empty(matrices[0].workspace_bytes(len(x)), dtype=torch.uint8, device=DEVICE)
                flute_library.init_workspace(self._library, workspace, stream)
                buffers[len(x)] = y, workspace
            y, workspace = buffers[len(x)]
            matrices[i].multiply(x, y, workspace, stream, self._flags)
            return y

        return {"": launch}


class Marlin:
    """vLLM's Marlin, called as its GPTQ layers call it."""

    name = "Marlin"
    formats = [(4, 128)]
    tolerance = PEER_TOLERANCE

    def __init__(self):
        from vllm import _custom_ops
        from vllm.scalar_type import scalar_types

        self._ops, self._type = _custom_ops, scalar_types.uint4b8

    def table(self, bits):
        return integers(bits)

    def prepare(self, weights):
        n, k, group = weights.n, weights.k, weights.group
        empty = torch.empty(0, dtype=torch.int32, device=DEVICE)
        multiprocessors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
        workspace = torch.zeros(multiprocessors, dtype=torch.int32, device=DEVICE)
        codes = [self._ops.gptq_marlin_repack(c.t().contiguous(), empty, k, n, weights.bits) for c in weights.codes]
        # Scales lie [group, n] there, each 64 of a row as a transposed 8 x 8.
        scales = [s.t().reshape(-1, 8, 8).transpose(1, 2).reshape(k // group, n).contiguous() for s in weights.scales]

        def launch(i, x):
            return self._ops.marlin_gemm(
                x, None, codes[i], None, scales[i], None, None, empty, empty, empty, workspace, self._type,
                len(x), n, k, is_k_full=True, use_atomic_add=False, use_fp32_reduce=True, is_zp_float=False,
            )  # fmt: skip

        return {"": launch}


class Machete:
    """vLLM's Machete, every schedule that it has."""

    name = "Machete"
    formats = [(4, 128)]
    tolerance = PEER_TOLERANCE

    def __init__(self):
        from vllm import _custom_ops
        from vllm.scalar_type import scalar_types

        self._ops, self._type = _custom_ops, scalar_types.uint4b8
        self._schedules = self._ops.machete_supported_schedules(torch.float16, self._type, torch.float16)

    def table(self, bits):
        return integers(bits)

    def prepare(self, weights):
        half = torch.float16
        codes = [self._ops.machete_prepack_B(c.t(), half, self._type, half) for c in weights.codes]
        scales = [s.t().contiguous() for s in weights.scales]

        def launcher(schedule):
            def launch(i, x):
                return self._ops.machete_mm(
                    x, codes[i], self._type, b_group_scales=scales[i], b_group_size=weights.group, schedule=schedule
                )

            return launch

        return {schedule: launcher(schedule) for schedule in self._schedules}


class Humming:
    """humming-kernels, with the kernel that it chooses for each number of tokens."""

    name = "Humming"
    formats = [(4, 128), (3, 128), (2, 128)]
    tolerance = PEER_TOLERANCE

    def __init__(self, shapes, formats, tokens):
        """Begins to compile all kernels, on every core: each shape, format and tile height has its own."""
        from humming.kernel.humming import HummingKernel
        from humming.layer import HummingLayer, HummingMethod
        from humming.schema import HummingWeightSchema

        self._layer, self._method, self._schema = HummingLayer, HummingMethod, HummingWeightSchema
        self._tokens = {1, *tokens}  # its launcher looks 1 up in any case
        pool = ThreadPoolExecutor(os.cpu_count(), initializer=torch.cuda.set_device, initargs=(DEVICE,))
        self._compiling = {}  # by shape and format
        for n, k in shapes:
            for bits, group in set(formats) & set(self.formats):
                layer = SimpleNamespace()
                meta = HummingMethod.prepare_layer_meta(
                    layer, n, k, self._weight_schema(bits, group), torch_dtype=torch.float16
                )
                shared = json.loads(meta.to_str())
                kernels = [shared | tuning for _, _, tuning in self._tuning(layer)]
                self._compiling[n, k, bits, group] = [
                    pool.submit(
                        HummingKernel, **{key: kernel[key] for key in kernel.keys() - {"sublayer_name", "num_sms"}}
                    )
                    for kernel in kernels
                ]
        pool.shutdown(wait=False)

    def table(self, bits):
        return integers(bits)

    def _weight_schema(self, bits, group):
        return self._schema(b_dtype=f"uint{bits}", weight_scale_group_size=group)

    def _tuning(self, layer):
        """Its choices for the numbers of tokens that are measured: [above, up to, parameters]."""
        choices = self._method.get_default_tuning_configs(layer)
        return [choice for choice in choices if any(choice[0] < m <= choice[1] for m in self._tokens)]

    def prepare(self, weights):
        for kernel in self._compiling[weights.n, weights.k, weights.bits, weights.group]:
            kernel.result()
        schema = self._weight_schema(weights.bits, weights.group)
        layers = []
        for codes, scales in zip(weights.codes, weights.scales, strict=True):
            with DEVICE:
                layer = self._layer(weights.n, weights.k, schema, torch_dtype=torch.float16)
            layer.load_from_tensors({"weight": codes, "weight_scale": scales})
            layer.transform()
            layers.append(layer)
        tuning = json.dumps(self._tuning(layers[0]))
        return {"": lambda i, x: layers[i](x, tuning_config=tuning)}


class BitsAndBytes:
    """bitsandbytes' NF4 in blocks of 64, without nested scales."""

    name = "bitsandbytes NF4"
    formats = [(4, 64)]
    tolerance = PEER_TOLERANCE

    def __init__(self):
        import bitsandbytes
        from bitsandbytes.functional import QuantState, get_4bit_type

        self._multiply, self._state = bitsandbytes.matmul_4bit, QuantState
        self._table = get_4bit_type("nf4", device="cpu")

    def table(self, bits):
        return self._table

    def prepare(self, weights):
        packed, states = [], []
        for codes, scales in zip(weights.codes, weights.scales, strict=True):
            low_first = codes.view(torch.uint8)  # there the first of two codes is the high half of a byte
            packed.append((low_first << 4 | low_first >> 4).view(-1, 1))
            states.append(
                self._state(
                    absmax=scales.float().view(-1),
                    shape=torch.Size((weights.n, weights.k)),
                    code=self._table.to(DEVICE),
                    blocksize=weights.group,
                    quant_type="nf4",
                    dtype=torch.float16,
                )
            )

        def launch(i, x):
            return self._multiply(x, packed[i].t(), states[i])

        return {"": launch}
