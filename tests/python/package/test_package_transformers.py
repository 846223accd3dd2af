"""flute.transformers: loading what the program wrote, quantizing while loading, saving what the program would write.

Needs transformers 5 or later beside what test_package_torch.py needs, and the program (FLUTE_PROGRAM).
"""

import json
import math

import checkpoints
import flute
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers 5 is not installed")
if not flute.library_path.with_name("libflute_torch.so").exists():
    pytest.skip(f"no PyTorch operator beside {flute.library_path}", allow_module_level=True)

import flute.transformers  # noqa: E402
from flute.transformers import FluteConfig  # noqa: E402
from safetensors import safe_open  # noqa: E402

EXAMPLES = {"llama": checkpoints.LLAMA, "gemma2": checkpoints.GEMMA}


def load(folder, **options):
    options.setdefault("dtype", torch.float32)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def logits(model, count=70):
    ids = torch.arange(100, 100 + count)[None]
    with torch.inference_mode():
        return model(ids).logits


def tensors(folder):
    """All tensors of a checkpoint, as bytes with dtype and shape."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
                found[name] = (tensor.dtype, tuple(tensor.shape), data)
    return found


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.fixture(params=EXAMPLES)
def source(request):
    return EXAMPLES[request.param]


@pytest.fixture
def program(request):
    """The program; the fixture of that purpose is called as this package is."""
    return request.getfixturevalue("flute")


@pytest.mark.parametrize("bits", [4, 2])
def test_a_quantized_model_is_the_model_of_its_weights(program, source, bits, tmp_path):
    """The same numbers as from the weights that the codes stand for, up to the order of fp32 sums."""
    program("quantize", source, tmp_path / "q", "--bits", str(bits))
    program("dequantize", tmp_path / "q", tmp_path / "plain", "--dtype", "fp32")
    model = load(tmp_path / "q")
    layers = [module for module in model.modules() if isinstance(module, flute.Linear)]
    assert len(layers) == 7 * model.config.num_hidden_layers
    expected = logits(load(tmp_path / "plain"))
    assert (logits(model) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_perplexity_is_the_programs(program, source, tmp_path):
    """Within 0.1 %, over the text's first windows."""
    program("quantize", source, tmp_path / "q", "--bits", "3")
    model = load(tmp_path / "q")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    text = checkpoints.TEXT.read_text()[:12000]
    (tmp_path / "text").write_text(text)
    ids = []
    for document in text.split("\n\0\n"):
        body = tokenizer(document, add_special_tokens=False)["input_ids"]
        ids += [model.config.bos_token_id, *body, model.config.eos_token_id]
    total = count = 0
    for begin in range(0, len(ids) // 512 * 512, 512):
        window = torch.tensor(ids[begin : begin + 512])[None]
        with torch.inference_mode():
            scores = model(window).logits[0, :-1].log_softmax(-1)
        total -= scores.gather(1, window[0, 1:, None]).sum().item()
        count += window.shape[1] - 1
    answer = json.loads(program("perplexity", tmp_path / "q", tmp_path / "text", "--json").stdout)
    assert count == answer["predictions"]
    assert math.exp(total / count) == pytest.approx(answer["perplexity"], rel=1e-3)


@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_quantizing_while_loading_saves_what_the_program_writes(program, source, tmp_path, method):
    options = ("--bits", "3", "--group-size", "32", "--codebook", "int", "--method", method)
    program("quantize", source, tmp_path / "program", *options)
    model = load(source, quantization_config=FluteConfig(3, 32, "int", method=method), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    ours, theirs = tensors(tmp_path / "saved"), tensors(tmp_path / "program")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert settings_of(tmp_path / "saved") == settings_of(tmp_path / "program")
    again = load(tmp_path / "saved", dtype=torch.bfloat16)
    assert torch.equal(logits(again), logits(model))


def test_layers_may_differ_or_stay(source, tmp_path):
    changed, left = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn"
    config = FluteConfig(4, modules_to_not_convert=[left], layers={changed: {"bits": 2, "group_size": 128}})
    model = load(source, quantization_config=config)
    assert type(model.get_submodule(left + ".q_proj")) is torch.nn.Linear
    q = model.get_submodule(changed).quantized
    assert (q.bits, q.group_size) == (2, 128)
    assert model.get_submodule("model.layers.0.mlp.down_proj").quantized.bits == 4
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.get_submodule(changed).quantized.bits == 2
    assert torch.equal(logits(again), logits(model))
    assert len(flute.Checkpoint(tmp_path / "saved")) == 7 * 4 - 4


def test_the_model_without_its_head(program, tmp_path):
    program("quantize", checkpoints.LLAMA, tmp_path / "q", "--include", "lm_head")
    whole = load(tmp_path / "q")
    assert isinstance(whole.lm_head, flute.Linear)
    base = transformers.AutoModel.from_pretrained(tmp_path / "q", dtype=torch.float32)
    assert isinstance(base.layers[0].mlp.up_proj, flute.Linear)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(base(ids).last_hidden_state, whole.model(ids).last_hidden_state)


def test_generation(program, source, tmp_path):
    """Greedy generation with a static cache gives the tokens of the dynamic one."""
    program("quantize", source, tmp_path / "q")
    model = load(tmp_path / "q")
    ids = torch.arange(100, 120)[None]
    options = {"max_new_tokens": 12, "do_sample": False}
    plain = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, cache_implementation="static", **options), plain)


def test_adapters_train_through_it(program, tmp_path):
    """Gradients reach what is before a quantized layer, and leave the codes alone."""
    program("quantize", checkpoints.LLAMA, tmp_path / "q")
    model = load(tmp_path / "q")
    assert model.hf_quantizer.is_trainable
    layer = model.model.layers[0].mlp
    down, before = layer.down_proj, layer.down_proj.quantized.packed.copy()
    adapter = torch.nn.Linear(down.in_features, down.in_features, bias=False)
    torch.nn.init.zeros_(adapter.weight)
    layer.down_proj = torch.nn.Sequential(adapter, down)
    adapter.forward = lambda x: x + torch.nn.functional.linear(x, adapter.weight)
    ids = torch.arange(100, 164)[None]
    optimizer = torch.optim.Adam(adapter.parameters(), 3e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    np.testing.assert_array_equal(down.quantized.packed, before)


def test_refusals(program, source, tmp_path):
    with pytest.raises(ValueError, match="device_map: expected the CPU or CUDA devices alone, found cpu and disk"):
        load(source, quantization_config=FluteConfig(), device_map={"model": "cpu", "lm_head": "disk"})
    with pytest.raises(ValueError, match="device_map: expected the CPU or CUDA devices alone, found cpu and cuda"):
        load(source, quantization_config=FluteConfig(), device_map={"model": "cpu", "lm_head": 0})
    with pytest.raises(ValueError, match="FluteConfig: method: expected 'rtn' or 'mse', found 'gptq'"):
        load(source, quantization_config=FluteConfig(method="gptq"))
    with pytest.raises(ValueError, match="format_version: expected 1"):
        FluteConfig(format_version=2)
    with pytest.raises(ValueError, match=r"bits: expected 1\.\.8, found 9"):
        FluteConfig(9)
    with pytest.raises(ValueError, match=r"layers: a\.b: expected keys among .*, found 'bit'"):
        FluteConfig(layers={"a.b": {"bit": 3}})
    program("quantize", source, tmp_path / "q")
    path = tmp_path / "q" / "config.json"
    config = json.loads(path.read_text())
    config["intermediate_size"] = 384
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"mlp\.\w+: expected shape \[\d+, \d+\], found"):
        load(tmp_path / "q")


def test_lora_with_peft(program, tmp_path):
    """A LoRA adapter learns; merging it into codes is refused, not done silently."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    program("quantize", checkpoints.LLAMA, tmp_path / "q", "--bits", "3")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    config._register_custom_module({flute.Linear: peft.tuners.lora.Linear})
    model = peft.get_peft_model(load(tmp_path / "q"), config)
    ids = torch.arange(100, 164)[None]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(6):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    with pytest.raises(AttributeError, match="weight"):
        model.merge_and_unload()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")


@needs_gpu
@pytest.mark.parametrize("device_map", ["cuda", "auto", {"": 0}], ids=str)
def test_a_model_on_the_gpu(source, tmp_path, device_map):
    """Quantized while it loads, saved from there, loaded again: the tensors and, up to fp16, the logits of the CPU."""
    here = load(source, quantization_config=FluteConfig(bits=3))
    expected = logits(here)
    here.save_pretrained(tmp_path / "here")
    there = load(source, quantization_config=FluteConfig(bits=3), device_map=device_map, dtype=torch.bfloat16)
    there.save_pretrained(tmp_path / "there")
    quantized = ".weight_packed", ".weight_scale", ".weight_codebook"
    found = tensors(tmp_path / "there")
    for name, tensor in tensors(tmp_path / "here").items():
        assert not name.endswith(quantized) or found[name] == tensor
    loaded = load(tmp_path / "there", device_map=device_map, dtype=torch.bfloat16)
    for model in (there, loaded):
        layers = [module for module in model.modules() if isinstance(module, flute.Linear)]
        assert layers and all(layer.quantized.device == "cuda:0" for layer in layers)
        assert all(layer.quantized._packed is None for layer in layers)
        ids = torch.arange(100, 170, device="cuda")[None]
        with torch.inference_mode():
            y = model(ids).logits.float().cpu()
        assert (y - expected).norm() < 0.05 * expected.norm()
        assert model.generate(ids, max_new_tokens=5, do_sample=False).shape == (1, 75)


@needs_gpu
def test_what_reads_the_same_is_multiplied_as_one(source, tmp_path):
    """q, k and v, gate and up, unless their settings differ. What is saved is the same, what is computed all but so."""
    odd = "model.layers.1.self_attn.k_proj"
    config = FluteConfig(4, layers={odd: {"bits": 3}}, modules_to_not_convert=["model.layers.2.mlp.up_proj"])
    model = load(source, quantization_config=config, device_map="cuda", dtype=torch.float16)
    stacks = {}
    for name, module in model.named_modules():
        if isinstance(module, flute.Linear):
            stacks.setdefault(id(module._weight.stack), []).append(name.removeprefix("model.layers."))
    found = {tuple(names) for names in stacks.values()}
    attention = [tuple(f"{i}.self_attn.{one}" for one in ("q_proj", "k_proj", "v_proj")) for i in (0, 2, 3)]
    mlp = [(f"{i}.mlp.gate_proj", f"{i}.mlp.up_proj") for i in (0, 1, 3)]
    assert {names for names in found if len(names) > 1} == {*attention, *mlp}
    model.save_pretrained(tmp_path / "there")
    load(source, quantization_config=config).save_pretrained(tmp_path / "here")
    there, here = tensors(tmp_path / "there"), tensors(tmp_path / "here")
    assert all(there[name] == tensor for name, tensor in here.items() if ".weight_" in name)
    expected = model(torch.arange(100, 170, device="cuda")[None]).logits
    for module in model.modules():
        if isinstance(module, flute.Linear):
            module.to("cpu").to("cuda", torch.float16)
            assert len(module._weight.rows) == 1
    alone = model(torch.arange(100, 170, device="cuda")[None]).logits
    assert (alone - expected).norm() < 1e-2 * expected.norm()


@needs_gpu
def test_a_model_in_one_compiled_graph(source):
    """Stacked layers and all, replayed as a CUDA graph: the logits of the model called plainly, of any tokens."""
    model = load(source, quantization_config=FluteConfig(group_size=128), dtype=torch.float16, device_map="cuda")
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    with torch.inference_mode():
        for begin in (100, 200, 300, 400):
            ids = torch.arange(begin, begin + 8, device="cuda")[None]
            expected = model(ids, use_cache=False).logits
            found = compiled(ids, use_cache=False).logits
            assert (found - expected).norm() < 1e-2 * expected.norm()
        assert model.generate(ids, max_new_tokens=4, do_sample=False, cache_implementation="static").shape == (1, 12)


@needs_gpu
def test_a_model_too_large_for_the_gpu_is_refused(source):
    """Where transformers would leave a part of it on the CPU."""
    with pytest.raises(ValueError, match="expected the CPU or CUDA devices alone, found cpu and cuda"):
        load(source, quantization_config=FluteConfig(), device_map="auto", max_memory={0: 10_000_000, "cpu": 10**10})
