"""What measure.py has done inside vLLM's worker processes, in a module of its own, so that they can import it."""

import torch

_LARGE = 1 << 20  # elements of a weight worth filling; beside those there are scales and the like


def linear_methods(model):
    """{"QKVParallelLinear": "FluteLinearMethod", ...} as loaded."""
    found = {}
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if method is None:
            continue
        kernel = getattr(method, "kernel", None)
        name = type(method).__name__ + (f"/{type(kernel).__name__}" if kernel is not None else "")
        found.setdefault(type(module).__name__, set()).add(name)
    return {key: ", ".join(sorted(value)) for key, value in sorted(found.items())}


def weight_bytes(model):
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def most_memory(model):
    """Bytes that PyTorch held at most on this GPU."""
    return torch.cuda.max_memory_reserved()


def randomize(model):
    """Random bits into every large integer weight, and tables and scales of ordinary size beside FLUTE's, in place.

    vLLM leaves integers as allocated, mostly zeros, and floats next to nothing, which a GPU multiplies at a higher
    clock than real weights. Returns how many weights it filled.
    """
    filled = 0
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() and weight.numel() >= _LARGE:
            limits = torch.iinfo(weight.dtype)
            weight.data.random_(limits.min, limits.max + 1)
            filled += 1
        elif name.endswith(".weight_codebook"):
            weight.data.uniform_(-1, 1)
        elif name.endswith(".weight_scale"):
            weight.data.uniform_(0.005, 0.02)
    return filled


_profiler = None


def start_profiler(model):
    global _profiler
    _profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    _profiler.start()


def stop_profiler(model):
    """Since the start: microseconds that the GPU was busy, and {kernel: (calls, microseconds in all)}."""
    _profiler.stop()
    kernels, spans = {}, []
    for event in _profiler.events():
        if event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        begin, end = event.time_range.start, event.time_range.end
        calls, us = kernels.get(event.name, (0, 0))
        kernels[event.name] = calls + 1, us + end - begin
        spans.append((begin, end))
    return union(spans), kernels


def union(spans):
    """How much [(begin, end)] cover together."""
    covered, reached = 0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return covered
