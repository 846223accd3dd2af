"""A model that is both the original and the quantized one, and the steps by which the second comes near the first."""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from ._arrays import Array
from ._library import Error
from ._packing import pack_codes
from ._tensor import QuantizedTensor
from ._tune_layer import RoundedLinear, TunedLinear

Windows = list[torch.Tensor]
"""Token ids, [length] each."""

HELD_OUT = 8
"""Windows of the text that are not learned from but measured with, where there is no other text for that."""

RATE = 0.016
"""Divided by the length of a layer's table it is the learning rate: what there is to correct halves with each bit."""

NFL_RATE = 0.064
"""The same with nfl, where scales alone learn, and a code changes only when its scale has moved far enough."""


class Measured(NamedTuple):
    """What a model does on some windows."""

    divergence: float
    """KL(original || quantized) of the next token's distribution, in nats, the mean over all tokens."""
    perplexity: float
    original_perplexity: float


class TunedModel:
    """The original model, with TunedLinear in the place of the layers that are quantized.

    recompute: keep only what goes into each block for the backward pass, and compute the rest of it again.
    """

    def __init__(self, layers: Mapping[str, QuantizedTensor], model: Any, method: str, recompute: bool) -> None:
        self.model = model.eval().requires_grad_(False)
        self.device, self.rounds = model.device, method == "nfl"
        if recompute:
            block: Any
            for block in model.modules():
                if isinstance(block, GradientCheckpointingLayer):
                    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self.layers: dict[str, TunedLinear] = {}
        modules = dict(self.model.named_modules())
        for name, q in layers.items():
            linear: Any = modules.get(name)
            if type(linear) is not torch.nn.Linear:
                found = "none" if linear is None else type(linear).__name__
                raise Error(f"tune: {name}: expected a linear layer in the original model, found {found}", "format")
            expected = (linear.out_features, linear.in_features)
            if q.shape != expected:
                raise Error(f"tune: {name}: expected shape {list(expected)}, found {list(q.shape)}", "format")
            self.layers[name] = (RoundedLinear if self.rounds else TunedLinear)(q, linear)
            self.model.set_submodule(name, self.layers[name])

    @contextmanager
    def original(self) -> Iterator[None]:
        """Meanwhile the model is the original one."""
        for layer in self.layers.values():
            layer.original = True
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.original = False

    def divergence(self, windows: Windows) -> torch.Tensor:
        """That of `Measured`, with gradients for scales and tables."""
        ids = torch.stack(windows).to(self.device)
        with self.original(), torch.no_grad():
            expected = self._log_probabilities(ids)
        return _divergence(self._log_probabilities(ids), expected)

    def loss(self, windows: Windows) -> torch.Tensor:
        """What training makes small: with nfl that of predicting the text, otherwise the divergence."""
        if not self.rounds:
            return self.divergence(windows)
        ids = torch.stack(windows).to(self.device)
        found = self._log_probabilities(ids).view(*ids.shape, -1)
        return -found[:, :-1].gather(2, ids[:, 1:, None]).mean()

    @torch.no_grad()
    def measure(self, windows: Windows, batch: int, progress: Callable[[int, int, float], None]) -> Measured:
        """`batch` windows at a time; progress is called after each batch with the windows done, of all, and the
        divergence.

        Perplexities as `flute perplexity` has them: in a window each token but the first is predicted.
        """
        divergence = loss = original_loss = 0.0
        done = 0
        while done < len(windows):
            ids = torch.stack(windows[done : done + batch]).to(self.device)
            with self.original():
                expected = self._log_probabilities(ids)
            found = self._log_probabilities(ids)
            done += len(ids)
            divergence += _divergence(found, expected).item() * len(ids)
            loss += _loss(found, ids)
            original_loss += _loss(expected, ids)
            progress(done, len(windows), divergence / done)
        return Measured(divergence / done, _exp(loss / done), _exp(original_loss / done))

    def settle(self) -> None:
        for name, layer in self.layers.items():
            layer.settle(name)

    def changed(self) -> dict[str, Array]:
        """The tensors of the file that are others now, after `settle`."""
        result = {}
        for name, layer in self.layers.items():
            result[f"{name}.weight_scale"], result[f"{name}.weight_codebook"] = layer.stored()
            if self.rounds:
                bits = layer.start_table.numel().bit_length() - 1
                result[f"{name}.weight_packed"] = pack_codes(layer.codes.cpu().numpy(), bits)
        return result

    def _log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=ids, use_cache=False).logits
        return logits.flatten(0, -2).float().log_softmax(-1)


def load(original: Path, dtype: torch.dtype) -> Any:
    """The model, on the CPU. flute.Error of kind "format"."""
    with _quiet():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                original, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise Error(f"tune: {original}: transformers cannot load it: {_first_line(error)}", "format") from error
    if info["missing_keys"]:
        name = sorted(info["missing_keys"])[0]
        raise Error(f"tune: {original}: expected the tensor {name}, which the model has, found none", "format")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers draws no bar and gives no advice meanwhile; what it has to say comes as an error."""
    drawn, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if drawn:
            logging.enable_progress_bar()


def _divergence(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Of log probabilities, [tokens, vocabulary] each."""
    return torch.nn.functional.kl_div(found, expected, reduction="batchmean", log_target=True)


def _loss(log_probabilities: torch.Tensor, ids: torch.Tensor) -> float:
    """The sum of the windows' mean losses. ids: [windows, length], of each the first not predicted."""
    values = log_probabilities.view(*ids.shape, -1)[:, :-1].gather(2, ids[:, 1:, None])
    return -float(values.double().mean()) * len(ids)


def _exp(loss: float) -> float:
    """Infinite where it is too large, and NaN stays NaN."""
    return math.inf if loss > 700 else math.exp(loss)


def train(
    model: TunedModel,
    windows: Windows,
    *,
    steps: int,
    batch: int,
    learning_rate: float | None,
    seed: int,
    progress: Callable[[int, int, float], None],
) -> None:
    """Adam with a learning rate that falls to 0 along a cosine; the tables' is half of the scales'. None: 2^-bits of
    RATE or NFL_RATE.

    A step takes `batch` windows in an order that `seed` gives; all are taken before one is taken again.
    progress is called after each step with its number from 1, the number of steps, and the loss.
    """
    groups: list[dict[str, Any]] = []
    for layer in model.layers.values():
        rate = (NFL_RATE if model.rounds else RATE) / layer.shift.shape[-1] if learning_rate is None else learning_rate
        groups.append({"params": [layer.log_scales], "lr": rate})
        if not model.rounds:
            groups.append({"params": [layer.shift], "lr": rate / 2})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: (1 + math.cos(math.pi * done / steps)) / 2)
    order = _order(len(windows), seed)
    for step in range(1, steps + 1):
        loss = model.loss([windows[next(order)] for _ in range(batch)])
        value = loss.item()
        if not math.isfinite(value):
            raise Error(f"tune: step {step}: expected a finite loss, found {value}: lower the learning rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step, steps, value)


def _order(count: int, seed: int) -> Iterator[int]:
    """0 .. count - 1 again and again, shuffled anew each time."""
    generator = random.Random(seed)
    while True:
        yield from generator.sample(range(count), count)


def windows_of(text: str, original: Path, length: int, config: Any) -> Windows:
    """The text's ids in windows, as `flute perplexity` cuts it: documents end with a line of one NUL character, and
    each stands between the ids for beginning and end."""
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(original, local_files_only=True)
        except (OSError, ValueError) as error:
            words = f"transformers cannot load its tokenizer: {_first_line(error)}"
            raise Error(f"tune: {original}: {words}", "format") from error
    ids: list[int] = []
    for document in text.split("\n\0\n"):
        ids += _ids(config.bos_token_id)
        ids += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        ids += _ids(config.eos_token_id)
    return list(torch.tensor(ids)[: len(ids) // length * length].view(-1, length))


def held_out(windows: Windows) -> tuple[Windows, Windows]:
    """Windows to learn from, and at most HELD_OUT, spread over all, to measure with."""
    count = min(HELD_OUT, len(windows) // 2)
    measured = {i * len(windows) // count for i in range(count)}
    return [one for i, one in enumerate(windows) if i not in measured], [windows[i] for i in sorted(measured)]


def _ids(token: Any) -> list[int]:
    return [] if token is None else [token[0] if isinstance(token, list) else token]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
