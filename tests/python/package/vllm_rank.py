"""One rank of a tensor-parallel group, on the CPU: vLLM's own layers of a model's first block, and its head, loaded
from a quantized checkpoint by the plug-in.

    vllm_rank.py CHECKPOINT RANK SIZE MEETING_FILE OUT.npz

writes, for each layer, the weights that its parameters stand for before they go to the GPU's layout.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import flute.vllm
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.config.lora import LoRAConfig
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.lora.utils import from_layer
from vllm.model_executor.layers.linear import (
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

MODULES = {"llama": ("llama", "LlamaForCausalLM"), "gemma2": ("gemma2", "Gemma2ForCausalLM")}


def layers_of(config, quantization):
    """As vLLM's models make them, by name."""
    options = {"bias": False, "quant_config": quantization}
    block, width, inner = "model.layers.0", config.hidden_size, config.intermediate_size
    heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    made = {
        f"{block}.self_attn.qkv_proj": lambda prefix: QKVParallelLinear(width, *heads, prefix=prefix, **options),
        f"{block}.self_attn.o_proj": lambda prefix: RowParallelLinear(
            heads[0] * heads[1], width, prefix=prefix, **options
        ),
        f"{block}.mlp.gate_up_proj": lambda prefix: MergedColumnParallelLinear(
            width, [inner] * 2, prefix=prefix, **options
        ),
        f"{block}.mlp.down_proj": lambda prefix: RowParallelLinear(inner, width, prefix=prefix, **options),
    }
    if not config.tie_word_embeddings:
        made["lm_head"] = lambda prefix: ParallelLMHead(
            config.vocab_size, width, prefix=prefix, quant_config=quantization
        )
    return {name: make(name) for name, make in made.items()}


def tensors_of(folder):
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)


def weights_of(layer):
    """fp32 [rows, k] of what the layer's parameters hold."""
    if hasattr(layer, "weight"):
        return layer.weight.detach().float().numpy()
    method, words = layer.quant_method, layer.weight_packed.data
    rows = method._rows
    tables = layer.weight_codebook.view(len(rows), -1)
    parts = zip(words.split(rows), layer.weight_scale.split(rows), tables, strict=True)
    made = [
        flute.QuantizedTensor.from_packed(packed.numpy(), table.numpy(), scale.detach().numpy(), bits=method._bits)
        for packed, scale, table in parts
    ]
    return np.concatenate([q.dequantize("fp16").astype(np.float32) for q in made])


def expect_adapters_fit(layers, packed_modules_mapping, config):
    """vLLM's LoRA takes every linear layer for one of those that it knows."""
    lora = LoRAConfig(lora_dtype=torch.float16)
    for name, layer in layers.items():
        if isinstance(layer, LinearBase):
            parts = packed_modules_mapping.get(name.rpartition(".")[2], [])
            wrapped = from_layer(layer, 1, lora, parts, config)
            assert isinstance(wrapped, BaseLayerWithLoRA), name
            assert wrapped.device == layer.weight_packed.device


def main(folder, rank, size, meeting, out):
    folder, rank, size = Path(folder), int(rank), int(size)
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))):
        init_distributed_environment(size, rank, f"file://{meeting}", rank, "gloo")
        initialize_model_parallel(size)
        flute.vllm.register()
        flute.vllm.register()  # vLLM may do so more than once
        config = AutoConfig.from_pretrained(folder)
        module, name = MODULES[config.model_type]
        model = getattr(import_module(f"vllm.model_executor.models.{module}"), name)
        settings = json.loads((folder / "config.json").read_text())["quantization_config"]
        quantization = get_quantization_config("flute").from_config(settings)
        quantization.maybe_update_config(str(folder), config)
        quantization.packed_modules_mapping = model.packed_modules_mapping
        torch.set_default_dtype(torch.float16)
        layers = layers_of(config, quantization)
        for name, tensor in model.hf_to_vllm_mapper.apply(tensors_of(folder)):
            layer, _, parameter = name.rpartition(".")
            if layer in layers:
                place = getattr(layers[layer], parameter)
                shard = (tensor.shard_id,) if hasattr(tensor, "shard_id") else ()
                place.weight_loader(place, tensor, *shard)
        expect_adapters_fit(layers, model.packed_modules_mapping, config)
        np.savez(out, **{name: weights_of(layer) for name, layer in layers.items()})
        torch.distributed.barrier()  # a rank that ends early would close its connections on the others


main(*sys.argv[1:])
