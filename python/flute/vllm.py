"""vLLM serves what `flute quantize` wrote, on one GPU or several (docs/serving.md).

Nothing is to be imported: vLLM finds the entry point "vllm.general_plugins" of this package and calls `register` in
each of its processes. It reads the files, and cuts them for tensor parallelism by the parameters that are made here.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.parameter import (
    BasevLLMParameter,
    ChannelQuantScaleParameter,
    GroupQuantScaleParameter,
    PackedvLLMParameter,
    PerTensorScaleParameter,
)

from ._arrays import MOST_SEGMENTS, SEGMENT_ROWS, group_count
from ._checkpoint import Checkpoint
from ._library import Error

if TYPE_CHECKING:
    from .transformers import FluteConfig

_METHOD = "flute"
_CAPABILITY = 80  # of the oldest GPU that has kernels
_BITS = (2, 3, 4)  # that they multiply
_SHARE_HEAD = ("gemma2",)  # models that vLLM has without an output head of their own
_MOST_RANKS = 64  # sizes of tensor parallelism that a message suggests


def register() -> None:
    """Makes "flute" known to vLLM. May be called again."""
    register_quantization_config(_METHOD)(FluteVllmConfig)


class FluteVllmConfig(QuantizationConfig):
    """`quantization_config` of config.json, and which layers of vLLM's model are quantized."""

    def __init__(self, settings: "FluteConfig") -> None:
        super().__init__()
        self._settings = settings
        self._head_is_quantized = True  # unless the settings leave it out, or there is none of its own

    def get_name(self) -> str:
        return _METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return _CAPABILITY

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FluteVllmConfig":
        # Not above: it loads the operator, and vLLM imports this module whatever model it serves.
        from .transformers import FluteConfig

        return cls(FluteConfig(**config))

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        settings = self._settings
        settings.modules_to_not_convert = hf_to_vllm_mapper.apply_list(settings.modules_to_not_convert)
        settings.layers = hf_to_vllm_mapper.apply_dict(settings.layers)

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Called before anything is loaded: the time to refuse a checkpoint."""
        if hf_config is not None:
            text = hf_config.get_text_config()
            self._head_is_quantized = not getattr(text, "tie_word_embeddings", False)
            if self._head_is_quantized and text.model_type in _SHARE_HEAD:
                raise ValueError(
                    f"flute: lm_head: vLLM multiplies with {text.model_type}'s embedding in its place: expected a "
                    "checkpoint without a head of its own, found one; quantize without --include lm_head"
                )
        folder = Path(model_name)
        if folder.is_dir() and any(folder.glob("*.safetensors*")):
            _expect_kernels_for(Checkpoint(folder))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if isinstance(layer, LinearBase):
            return self._method_of(prefix) or UnquantizedLinearMethod()
        if isinstance(layer, ParallelLMHead) and self._head_is_quantized:
            method = self._method_of(prefix)
            if method is not None:
                _expect_no_adapters_of(prefix)
            return method
        return None

    def _method_of(self, prefix: str) -> "FluteLinearMethod | None":
        """Of a layer, which may be several of the checkpoint's layers stacked; None: it is not quantized."""
        from ._torch import is_among

        parent, _, last = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(last, [last])
        names = [f"{parent}.{part}" if parent else part for part in parts]
        quantized = [not is_among(name, self._settings.modules_to_not_convert) for name in names]
        if not any(quantized):
            return None
        found = [self._settings.of_layer(name) for name in names]
        kinds = [f"{one['bits']} bits, group size {one['group_size']}" for one in found]
        kinds = [kind if here else "not quantized" for kind, here in zip(kinds, quantized, strict=True)]
        if len(set(kinds)) > 1:
            listed = "; ".join(f"{part}: {kind}" for part, kind in zip(parts, kinds, strict=True))
            raise ValueError(
                f"flute: {prefix}: expected layers that are multiplied as one to be quantized alike, found {listed}"
            )
        return FluteLinearMethod(prefix, found[0]["bits"], found[0]["group_size"])


@register_weight_loader_v2_supported_method
class FluteLinearMethod(LinearMethodBase):
    """A linear layer or output head: its parameters, what they become on the GPU, and the multiply with them."""

    def __init__(self, name: str, bits: int, group_size: int) -> None:
        _expect_bits(name, bits)
        self._name, self._bits, self._group_size = name, bits, group_size

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """The tensors of the file (docs/format.md), or a rank's part of them."""
        k, rows, bits = input_size_per_partition, list(output_partition_sizes), self._bits
        self._expect_columns_fit(k, input_size)
        self._expect_rows_fit(rows, layer.tp_size)
        loader = extra_weight_attrs["weight_loader"]
        words = torch.empty(sum(rows), k // 32 * bits, dtype=torch.int32)
        # Rounded to the dtype of activations as they are read, which the multiply would do.
        scales = torch.empty(sum(rows), group_count(k, self._group_size), dtype=params_dtype)
        tables = torch.empty(*[len(rows)] * (len(rows) > 1), 1 << bits, dtype=torch.float32)
        places = {"output_dim": 0, "weight_loader": loader}
        packed = PackedvLLMParameter(data=words, input_dim=1, packed_dim=1, packed_factor=Fraction(32, bits), **places)
        scale: BasevLLMParameter
        if self._group_size > 0:
            scale = GroupQuantScaleParameter(data=scales, input_dim=1, **places)
        else:
            scale = ChannelQuantScaleParameter(data=scales, **places)
        layer.register_parameter("weight_packed", packed)
        layer.register_parameter("weight_scale", scale)
        layer.register_parameter("weight_codebook", _Codebooks(data=tables, weight_loader=loader))
        self._rows, self._k = rows, k

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Packed becomes tiled, under the same names; of the packed tensors none is left."""
        from . import _operator

        sizes = _operator.Sizes(self._rows, self._k, self._bits, self._group_size)
        words, scales, tables = layer.weight_packed.data, layer.weight_scale.data, layer.weight_codebook.data
        parts = zip(words.split(self._rows), scales.split(self._rows), tables.view(len(self._rows), -1), strict=True)
        try:
            segments = [_operator.packed_view(*part, sizes) for part in parts]
            codes, values = _operator.tile(sizes, segments, words.device, scales.dtype)
        except (ValueError, Error) as error:
            raise type(error)(f"flute: {self._name}: {error}") from error
        for name, tensor in {"packed": codes, "scale": values.scales, "codebook": values.codebooks}.items():
            setattr(layer, f"weight_{name}", torch.nn.Parameter(tensor, requires_grad=False))
        self._gemm = _operator.gemm_tiled

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        weight = layer.weight_packed, layer.weight_scale, layer.weight_codebook
        sizes = self._rows, self._k, self._bits, self._group_size
        return self._gemm(x, *weight, bias, *sizes)

    def _expect_columns_fit(self, k: int, all_columns: int) -> None:
        step = max(32, self._group_size)
        if k == all_columns or k % step == 0:
            return
        fitting = [size for size in _divisors(all_columns) if size == 1 or all_columns // size % step == 0]
        raise ValueError(
            f"flute: {self._name}: {all_columns} input features on {all_columns // k} GPUs: expected a multiple of "
            f"{step} on each, so that groups stay whole, found {k}; tensor parallel sizes that fit: {_listed(fitting)}"
        )

    def _expect_rows_fit(self, rows: list[int], ranks: int) -> None:
        if len(rows) > MOST_SEGMENTS:
            raise ValueError(f"flute: {self._name}: expected 1..{MOST_SEGMENTS} layers stacked, found {len(rows)}")
        if all(count % SEGMENT_ROWS == 0 for count in rows[:-1]):
            return
        whole = [count * ranks for count in rows]
        fitting = [
            size
            for size in _divisors(whole[-1])
            if all(count % size == 0 and count // size % SEGMENT_ROWS == 0 for count in whole[:-1])
        ]
        raise ValueError(
            f"flute: {self._name}: {whole} output features on {ranks} GPUs: expected multiples of {SEGMENT_ROWS} on "
            f"each but for the last, found {rows}; tensor parallel sizes that fit: {_listed(fitting)}"
        )


class _Codebooks(PerTensorScaleParameter):
    """A table [2^bits], whole on every rank; of stacked layers [layers, 2^bits]."""

    def load_merged_column_weight(self, loaded_weight: torch.Tensor, **kwargs: Any) -> None:
        self.data[self._shard_id_as_int(kwargs["shard_id"])].copy_(loaded_weight)

    def load_qkv_weight(self, loaded_weight: torch.Tensor, **kwargs: Any) -> None:
        self.load_merged_column_weight(loaded_weight, **kwargs)


def _expect_no_adapters_of(head: str) -> None:
    """Where LoRA may put them, vLLM asks every head for its `weight`, to learn a dtype and a device."""
    config = get_current_vllm_config_or_none()
    adapters = config and config.lora_config
    name = head.rpartition(".")[2]
    if adapters and (adapters.target_modules is None or name in adapters.target_modules):
        raise ValueError(
            f"flute: {head}: expected a head that is not quantized, which vLLM's LoRA needs, found a quantized one; "
            "name the layers that have adapters (--lora-target-modules), or quantize without --include lm_head"
        )


def _expect_kernels_for(checkpoint: Checkpoint) -> None:
    for name, q in checkpoint.items():
        _expect_bits(name, q.bits)
        if q._offsets is not None:
            raise ValueError(f"flute: {name}: expected no offsets, which the GPU's kernels do not add, found some")
        if q.codebook.ndim > 1:
            raise ValueError(f"flute: {name}: expected one codebook for the matrix, found one for each row")


def _expect_bits(name: str, bits: int) -> None:
    if bits not in _BITS:
        raise ValueError(f"flute: {name}: expected 2, 3 or 4 bits, which the GPU's kernels multiply, found {bits}")


def _divisors(count: int) -> list[int]:
    return [size for size in range(1, _MOST_RANKS + 1) if count % size == 0]


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes) or "none"
