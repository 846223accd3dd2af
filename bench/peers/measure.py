"""Weights that everybody multiplies with, what the product should be, and how long a multiply takes."""

import statistics

import torch

DEVICE = torch.device("cuda", 0)
WARM_UP, REPETITIONS = 3, 9
BYTES_PER_US, FLOPS_PER_US, GRAPH_US = 3.3e6, 8e8, 2000  # no card of today is faster; what a graph is to last


def copies_that_rotate(size):
    """How many copies of `size` bytes it takes so that every launch reads from memory: more than four times the L2."""
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    return (4 * cache + (8 << 20)) // size + 2


class DenseWeights:
    """Copies of a random matrix [n, k] in fp16."""

    bits, group = 16, None

    def __init__(self, n, k):
        self.n, self.k, self.bytes = n, k, 2 * n * k
        self.copies = copies_that_rotate(self.bytes)
        half = {"dtype": torch.float16, "device": DEVICE}
        self.values = [torch.empty((n, k), **half).uniform_(-0.1, 0.1) for _ in range(self.copies)]

    def product(self, x, _):
        """x * W^T in float64, with the first copy."""
        return torch.cat([x.double() @ rows.double().t() for rows in self.values[0].split(1024)], 1)


class QuantizedWeights:
    """Copies of a matrix [n, k] of `bits` with a scale for each `group`: random codes, packed as FLUTE packs them (code
    j of a row in bits [j * bits, (j + 1) * bits) of its little-endian bit stream), and random scales in fp16."""

    def __init__(self, n, k, bits, group):
        self.n, self.k, self.bits, self.group = n, k, bits, group
        self.bytes = n * k * bits // 8 + n * k // group * 2
        self.copies = copies_that_rotate(self.bytes)
        words, half = {"dtype": torch.int32, "device": DEVICE}, {"dtype": torch.float16, "device": DEVICE}
        self.codes = [torch.randint(-(2**31), 2**31, (n, k * bits // 32), **words) for _ in range(self.copies)]
        self.scales = [torch.empty((n, k // group), **half).uniform_(0.002, 0.02) for _ in range(self.copies)]

    def product(self, x, table):
        """x * W^T in float64, with the first copy and values table[code] * scale."""
        table = table.to(DEVICE, torch.float64)
        first = torch.arange(self.k, device=DEVICE) * self.bits
        word, shift = first // 32, first % 32
        following = (word + 1).clamp(max=self.codes[0].shape[1] - 1)
        parts = []
        for packed, scales in zip(self.codes[0].split(1024), self.scales[0].split(1024), strict=True):
            packed = packed.long() & 0xFFFFFFFF
            codes = (packed[:, word] | packed[:, following] << 32) >> shift & (1 << self.bits) - 1
            parts.append(x.double() @ (table[codes] * scales.double().repeat_interleave(self.group, 1)).t())
        return torch.cat(parts, 1)


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def launches_of_a_graph(weights, m):
    """Every copy at least once, and enough that the graph's beginning and end do not count."""
    least = max(weights.bytes / BYTES_PER_US, 2 * m * weights.n * weights.k / FLOPS_PER_US)
    enough = min(20 if weights.bytes > 40e6 else 40, round(GRAPH_US / least))
    return max(weights.copies, enough)


def time_launches(launch, x, weights, stream, repetitions=REPETITIONS):
    """Microseconds of launch(i, x), captured in one graph and replayed: median, least and most."""
    count = launches_of_a_graph(weights, len(x))
    graph = torch.cuda.CUDAGraph()
    times = []
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for i in range(count):
                launch(i % weights.copies, x)
        finally:
            graph.capture_end()
        for i in range(WARM_UP + repetitions):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            if i >= WARM_UP:
                times.append(1e3 * begin.elapsed_time(end) / count)
    return statistics.median(times), min(times), max(times)
