"""transformers reads, makes and writes quantized models once this module is imported.

    import flute.transformers
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("small-3-bit")  # what `flute quantize` wrote
    config = flute.transformers.FluteConfig(bits=3, group_size=64)
    model = AutoModelForCausalLM.from_pretrained("small", quantization_config=config)  # quantized while it loads
    model.save_pretrained("small-3-bit")  # the same format

It registers "flute" by transformers' own register_quantization_config and register_quantizer (transformers 5 or later).
On the CPU or on GPUs, as device_map says; a model that is partly on the one and partly on the others is refused.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ._checkpoint import Checkpoint
from ._operator import moved, stacked
from ._quantize import checked_method, quantize
from ._tensor import QuantizedTensor
from ._torch import Linear, head_of, is_among, weight_array, why_not_stacked

_METHOD, _VERSION = "flute", 1
_LAYER_KEYS = ("bits", "group_size", "codebook")
# In the modules of that name, those that transformers calls in this order on the same input.
_SAME_INPUT = (("self_attn", "q_proj", "k_proj", "v_proj"), ("mlp", "gate_proj", "up_proj"))


@register_quantization_config(_METHOD)
class FluteConfig(QuantizationConfigMixin):
    """How a model is quantized: `quantization_config` of config.json (docs/format.md).

    bits, group_size, codebook, scale_dtype, method: as in `flute.quantize`; the codebook by its name.
    modules_to_not_convert: names of modules, or beginnings of names up to a dot, that stay as they are.
    layers: for each module that differs, by name, the keys among bits, group_size and codebook that differ.

    Quantized are the linear layers but the output head. Raises TypeError and ValueError.
    """

    def __init__(
        self,
        bits: int = 4,
        group_size: int = 64,
        codebook: str = "nf",
        scale_dtype: str = "fp16",
        modules_to_not_convert: list[str] | None = None,
        layers: Mapping[str, Mapping[str, Any]] | None = None,
        method: str = "rtn",
        **other: Any,
    ) -> None:
        version = other.pop("format_version", _VERSION)
        other.pop("quant_method", None)
        if not isinstance(version, int) or not 1 <= version <= _VERSION:
            raise ValueError(f"FluteConfig: format_version: expected {_VERSION}, found {version}")
        if not isinstance(bits, int) or not 1 <= bits <= 8:
            raise ValueError(f"FluteConfig: bits: expected 1..8, found {bits!r}")
        for name, changes in (layers or {}).items():
            unknown = sorted(set(changes) - set(_LAYER_KEYS))
            if unknown:
                expected = ", ".join(_LAYER_KEYS)
                raise ValueError(f"FluteConfig: layers: {name}: expected keys among {expected}, found {unknown[0]!r}")
        self.quant_method = _METHOD
        self.format_version = version
        self.bits, self.group_size, self.codebook, self.scale_dtype = bits, group_size, codebook, scale_dtype
        self.method = method  # of a checkpoint: any, also those that the program alone has
        self.modules_to_not_convert = list(modules_to_not_convert or [])
        self.layers = {name: dict(changes) for name, changes in (layers or {}).items()}
        self.other = other  # what a later writer adds is kept

    def to_dict(self) -> dict[str, Any]:
        """The dictionary of config.json, where a table that was learned has no other name."""
        result = {key: value for key, value in super().to_dict().items() if key != "other"}
        if self.method == "mse":
            result["codebook"] = "learned"
            for changes in result["layers"].values():
                changes.pop("codebook", None)
        if not result["layers"]:
            del result["layers"]
        return {**result, **self.other}

    def of_layer(self, name: str) -> dict[str, Any]:
        """bits, group_size and codebook of a module."""
        return {key: getattr(self, key) for key in _LAYER_KEYS} | self.layers.get(name, {})


class _Waiting(torch.nn.Module):
    """In the place of a layer while transformers loads the rest, its bias among it."""

    place: torch.Tensor

    def __init__(self, q: QuantizedTensor, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.q, self.bias = q, bias
        # transformers counts it as large as the weight (param_element_size), and moves it where that is to go.
        self.register_buffer("place", torch.empty(1, dtype=torch.uint8, device="meta"), persistent=False)


class _Quantize(ConversionOps):
    """A weight that has just been read becomes codes."""

    def __init__(self, quantizer: "FluteQuantizer") -> None:
        self.quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        full_layer_name: str | None = None,
        model: PreTrainedModel | None = None,
        missing_keys: set[str] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        (value,) = input_dict.values()
        weight = value[0] if isinstance(value, list) else value
        assert model is not None and full_layer_name is not None
        name = full_layer_name.removesuffix(".weight")
        config = self.quantizer.quantization_config
        q = quantize(
            weight_array(weight), scale_dtype=config.scale_dtype, method=config.method, **config.of_layer(name)
        )
        model.set_submodule(name, _Waiting(q, model.get_submodule(name).bias))
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}


@register_quantizer(_METHOD)
class FluteQuantizer(HfQuantizer):
    """What transformers asks of a quantization method."""

    quantization_config: FluteConfig

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        if device_map not in (None, "auto", "balanced", "balanced_low_0", "sequential"):
            _expect_one_kind(device_map.values() if isinstance(device_map, dict) else [device_map])
        if not self.pre_quantized:
            checked_method(self.quantization_config.method, "FluteConfig: method")

    def update_device_map(self, device_map: Any) -> Any:
        return {"": "cpu"} if device_map == "auto" and not torch.cuda.is_available() else device_map

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: torch.Tensor) -> float:
        name, _dot, last = param_name.rpartition(".")
        module = model.get_submodule(name) if last == "place" else None
        if isinstance(module, _Waiting):
            return float(module.q.nbytes)
        size: float = super().param_element_size(model, param_name, param)
        return size

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        if not self.pre_quantized:
            left = self.quantization_config.modules_to_not_convert
            left += [name for name in head_of(model) if name not in left]
            return
        if not checkpoint_files:
            raise ValueError("flute: expected a checkpoint in files, found a state_dict")
        # The layers come out of the mapped files as they are; transformers loads what is not quantized.
        checkpoint = Checkpoint(Path(checkpoint_files[0]).parent)
        prefix = model.base_model_prefix + "."
        for name, q in checkpoint.items():
            # A model without its head has names without the prefix of the model that it was saved from.
            here = name if _has(model, name) else name.removeprefix(prefix)
            if not _has(model, here):
                if name.startswith(prefix):
                    raise ValueError(f"flute: {name}: expected a linear layer of {type(model).__name__}, found none")
                continue  # the head, where only the base model is wanted
            module = model.get_submodule(here)
            if (module.out_features, module.in_features) != q.shape:
                expected = [module.out_features, module.in_features]
                raise ValueError(f"flute: {name}: expected shape {expected}, found {list(q.shape)}")
            model.set_submodule(here, _Waiting(q, module.bias))
        ignored = {r"\.weight_(packed|scale|codebook|offset)$"}
        model._keys_to_ignore_on_load_unexpected = set(model._keys_to_ignore_on_load_unexpected or []) | ignored

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        name, _dot, last = param_name.rpartition(".")
        if self.pre_quantized or last != "weight" or not _has(model, name):
            return False
        return not is_among(name, self.quantization_config.modules_to_not_convert)

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        waiting = {name: module for name, module in model.named_modules() if isinstance(module, _Waiting)}
        _expect_one_kind(getattr(model, "hf_device_map", {}).values())
        dtype = model.dtype if model.dtype in (torch.float16, torch.bfloat16) else None
        for names in _multiplied_as_one(waiting):
            modules = [waiting[name] for name in names]
            if len(names) > 1:
                qs = stacked([module.q for module in modules], modules[0].place.device, dtype)
            else:
                qs = [moved(modules[0].q, modules[0].place.device, dtype)]
            for name, module, q in zip(names, modules, qs, strict=True):
                layer = Linear(q)
                layer.bias = module.bias
                model.set_submodule(name, layer.train(module.training))
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """What is added to a quantized model, an adapter say, may be trained; the quantized weights stay."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def _expect_one_kind(devices: Iterable[Any]) -> None:
    """What is offloaded from GPUs to the CPU or to disk is beyond what a layer can follow."""
    kinds = set()
    for device in devices:
        try:
            kinds.add(torch.device(device).type)
        except (TypeError, RuntimeError):
            kinds.add(str(device))
    if not (kinds <= {"cpu"} or kinds <= {"cuda"}):
        found = " and ".join(sorted(kinds))
        raise ValueError(f"flute: device_map: expected the CPU or CUDA devices alone, found {found}")


def _multiplied_as_one(waiting: Mapping[str, _Waiting]) -> Iterable[list[str]]:
    """The names in groups: those that can be stacked together, the others alone."""
    groups = {name: [name] for name in waiting}
    for name in waiting:
        parent, _dot, last = name.rpartition(".")
        for module, *lasts in _SAME_INPUT:
            if (parent.rpartition(".")[2], last) != (module, lasts[0]):
                continue
            names = [f"{parent}.{one}" for one in lasts]
            modules = [waiting[one] for one in names if one in waiting]
            parts = [(one.q, one.bias, one.place.device) for one in modules]
            if len(parts) == len(names) and why_not_stacked(parts) is None:
                for one in names:
                    del groups[one]
                groups[name] = names
    return groups.values()


def _has(model: PreTrainedModel, name: str) -> bool:
    try:
        return isinstance(model.get_submodule(name), torch.nn.Linear)
    except AttributeError:
        return False
