"""flute.vllm: what vLLM's own layers hold after loading what the program wrote, on one rank and on each of two, and
what is refused before a weight is read.

Needs vLLM beside what test_package_torch.py needs, but no GPU: the multiply itself is test_package_cuda.py's.
"""

import json
import subprocess
import sys
import types
from pathlib import Path

import checkpoints
import flute
import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
if not flute.library_path.with_name("libflute_torch.so").exists():
    pytest.skip(f"no PyTorch operator beside {flute.library_path}", allow_module_level=True)

import flute.vllm  # noqa: E402
import torch  # noqa: E402
from transformers import AutoConfig  # noqa: E402

RANK = Path(__file__).with_name("vllm_rank.py")
MERGED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@pytest.fixture
def program(request):
    """The program; the fixture of that purpose is called as this package is."""
    return request.getfixturevalue("flute")


def on_ranks(folder, size, tmp_path):
    """What each rank's layers hold."""
    meeting = tmp_path / "meeting"
    outs = [tmp_path / f"{rank}.npz" for rank in range(size)]
    commands = [[sys.executable, RANK, folder, str(rank), str(size), meeting, out] for rank, out in enumerate(outs)]
    ranks = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors
    return [dict(np.load(out)) for out in outs]


def expected(folder, name):
    """The matrices of the checkpoint's layers that vLLM's layer `name` stacks."""
    checkpoint = flute.Checkpoint(folder)
    parent, _, last = name.rpartition(".")
    names = [f"{parent}.{part}" for part in MERGED[last]] if last in MERGED else [name]
    return [checkpoint[one].dequantize("fp16").astype(np.float32) for one in names if one in checkpoint]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (checkpoints.LLAMA, ["--bits", "3", "--codebook", "kmeans", "--include", "lm_head"]),
        (checkpoints.GEMMA, ["--bits", "4", "--group-size", "128", "--layer-bits", "mlp=2"]),
        (checkpoints.LLAMA, ["--bits", "4", "--group-size", "-1", "--scale-dtype", "fp32"]),
    ],
)
def test_each_rank_holds_its_part_of_every_layer(program, source, arguments, size, tmp_path):
    program("quantize", source, tmp_path / "q", *arguments)
    ranks = on_ranks(tmp_path / "q", size, tmp_path)
    assert len(ranks[0]) >= 4
    for name in ranks[0]:
        whole = expected(tmp_path / "q", name)
        if not whole:
            assert name == "lm_head"  # of this one the file has the weights themselves
            continue
        along_k = name.endswith(("o_proj", "down_proj"))
        for rank, found in enumerate(ranks):
            parts = [np.split(matrix, size, axis=int(along_k))[rank] for matrix in whole]
            np.testing.assert_array_equal(found[name], np.concatenate(parts), err_msg=f"{name}, rank {rank}")


def config_of(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    return flute.vllm.FluteVllmConfig.from_config({**settings, **changes})


def test_vllm_finds_the_plug_in():
    import tomllib

    from vllm.model_executor.layers.quantization import get_quantization_config

    project = tomllib.loads((checkpoints.ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"flute": "flute.vllm:register"}
    flute.vllm.register()
    assert get_quantization_config("flute") is flute.vllm.FluteVllmConfig


def test_configurations_of_the_benchmark_are_taken():
    sys.path.insert(0, str(checkpoints.ROOT / "bench" / "e2e"))
    from measure import ENGINES

    for name, (settings, _) in ENGINES.items():
        if name.startswith("flute"):
            config = flute.vllm.FluteVllmConfig.from_config(dict(settings))
            assert config._method_of("model.layers.0.mlp.down_proj")._bits == int(name.split("-")[1])
            assert (config._method_of("lm_head") is not None) == name.endswith("head")


def test_an_unknown_version_of_the_format_is_refused(quantized):
    with pytest.raises(ValueError, match="format_version: expected 1, found 2"):
        config_of(quantized, format_version=2)


def test_a_missing_shard_is_refused_before_loading(program, tmp_path):
    program("quantize", checkpoints.LLAMA, tmp_path / "q", "--bits", 4)
    (shard, *_) = sorted((tmp_path / "q").glob("*.safetensors"))
    shard.unlink()
    config = config_of(tmp_path / "q")
    with pytest.raises(flute.Error, match=shard.name):
        config.maybe_update_config(str(tmp_path / "q"), AutoConfig.from_pretrained(tmp_path / "q"))


def test_a_head_that_vllm_does_not_have_is_refused_before_loading(program, tmp_path):
    program("quantize", checkpoints.GEMMA, tmp_path / "q", "--bits", 4, "--include", "lm_head")
    config = config_of(tmp_path / "q")
    with pytest.raises(ValueError, match="lm_head: .* gemma2's embedding"):
        config.maybe_update_config(str(tmp_path / "q"), AutoConfig.from_pretrained(tmp_path / "q"))


def test_a_card_that_is_too_old_is_refused_before_loading(quantized, monkeypatch):
    from vllm.config import VllmConfig
    from vllm.config.load import LoadConfig
    from vllm.platforms import current_platform
    from vllm.platforms.interface import DeviceCapability

    flute.vllm.register()
    hf = AutoConfig.from_pretrained(quantized)
    model = types.SimpleNamespace(quantization="flute", hf_config=hf, model=str(quantized), dtype=torch.float16)
    turing = DeviceCapability(7, 5)
    monkeypatch.setattr(type(current_platform), "get_device_capability", lambda *args, **more: turing)
    with pytest.raises(ValueError, match="flute is not supported .* Minimum capability: 80. Current capability: 75"):
        VllmConfig._get_quantization_config(model, LoadConfig())


@pytest.mark.parametrize(("modules", "refused"), [(None, True), (["lm_head", "q_proj"], True), (["q_proj"], False)])
def test_adapters_of_a_quantized_head_are_refused(quantized, modules, refused):
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.config.lora import LoRAConfig
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    config, head = config_of(quantized, modules_to_not_convert=[]), ParallelLMHead.__new__(ParallelLMHead)
    vllm_config = VllmConfig(device_config=DeviceConfig(device="cpu"))
    vllm_config.lora_config = LoRAConfig(target_modules=modules)
    with set_current_vllm_config(vllm_config):
        if refused:
            with pytest.raises(
                ValueError, match="lm_head: expected a head that is not quantized.*--lora-target-modules"
            ):
                config.get_quant_method(head, "lm_head")
        else:
            assert config.get_quant_method(head, "lm_head") is not None
    assert config.get_quant_method(head, "lm_head") is not None  # without adapters


def test_bits_without_kernels_are_refused_before_loading(program, tmp_path):
    program("quantize", checkpoints.LLAMA, tmp_path / "q", "--bits", 4, "--layer-bits", "layers.2.*down_proj=5")
    with pytest.raises(ValueError, match="model.layers.2.mlp.down_proj: expected 2, 3 or 4 bits.*found 5"):
        config_of(tmp_path / "q").maybe_update_config(str(tmp_path / "q"))


@pytest.mark.parametrize("changes", [{"bits": 3}, {"group_size": 32}])
def test_layers_that_are_multiplied_as_one_are_quantized_alike(quantized, changes):
    config = config_of(quantized, layers={"model.layers.1.self_attn.k_proj": changes})
    config.packed_modules_mapping = {name: list(parts) for name, parts in MERGED.items()}
    assert config._method_of("model.layers.0.self_attn.qkv_proj") is not None
    with pytest.raises(ValueError, match="model.layers.1.self_attn.qkv_proj: .* found q_proj: 4 bits"):
        config._method_of("model.layers.1.self_attn.qkv_proj")


def test_modules_that_stayed_as_they_were_are_not_quantized(quantized):
    config = config_of(quantized, modules_to_not_convert=["lm_head", "model.layers.0", "model.layers.1.mlp.up_proj"])
    config.packed_modules_mapping = {name: list(parts) for name, parts in MERGED.items()}
    assert config._method_of("lm_head") is None
    assert config._method_of("model.layers.0.mlp.gate_up_proj") is None
    assert config._method_of("model.layers.1.mlp.down_proj") is not None
    with pytest.raises(ValueError, match="gate_proj: 4 bits, group size 64; up_proj: not quantized"):
        config._method_of("model.layers.1.mlp.gate_up_proj")


def create(rows, k, whole_k, ranks, group_size=128):
    method = flute.vllm.FluteLinearMethod("layer", 4, group_size)
    place = types.SimpleNamespace(tp_size=ranks)
    method.create_weights(place, k, rows, whole_k, sum(rows) * ranks, torch.float16, weight_loader=None)


def test_a_parallel_size_that_cuts_a_group_is_refused():
    with pytest.raises(ValueError, match="layer: 768 input features on 4 GPUs: .* multiple of 128 .* fit: 1, 2, 3, 6"):
        create([256], 192, 768, 4)


def test_a_parallel_size_that_leaves_odd_rows_is_refused():
    with pytest.raises(ValueError, match="on 8 GPUs: expected multiples of 32 .* fit: 1, 2, 4$"):
        create([48, 16, 16], 256, 256, 8)


def test_the_multiply_compiles_into_one_operator():
    """vLLM compiles a model whole: what stands between layers and the operator must not break its graph."""
    from flute import _operator

    method = flute.vllm.FluteLinearMethod("layer", 4, 128)
    method._rows, method._k, method._gemm = [64, 32], 256, _operator.gemm_tiled
    sizes = {"packed": (96 * 128, torch.uint8), "scale": (192, torch.float16), "codebook": (32, torch.float16)}
    tensors = {f"weight_{name}": torch.empty(n, dtype=dtype, device="meta") for name, (n, dtype) in sizes.items()}
    layer, called = types.SimpleNamespace(**tensors), []

    def backend(graph, inputs):
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    x = torch.empty(3, 256, dtype=torch.float16, device="meta")
    y = torch.compile(lambda x: method.apply(layer, x), backend=backend, fullgraph=True)(x)
    assert y.shape == (3, 96)
    assert called == ["flute.gemm_tiled.default"]
