"""Trains the scales and tables of a quantized checkpoint until the model says what the unquantized one says.

    python -m flute.tune small-3-bit small-3-bit-tuned --original small --calibration text.txt

The same as a function is `flute.tune.tune`. Needs PyTorch and transformers, 5 or later.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from . import _tune_files
from ._arrays import integer, positive_float32
from ._checkpoint import Checkpoint
from ._library import Error

if TYPE_CHECKING:
    import torch

__all__ = ["Report", "tune"]

_DTYPES = ("fp32", "bf16")


@dataclass(frozen=True)
class Report:
    """What tuning has reached. Divergences are KL(original || quantized) of the next token, in nats, on windows of the
    text that were not learned from."""

    before: float
    """Of the checkpoint that was there."""
    learned: float
    """After the last step, scales in float32."""
    after: float
    """Of what is in the file: scales rounded to its dtype."""
    layers: int
    tokens: int
    """Learned from, those twice that were taken twice."""
    seconds: float
    """Of all steps, without loading and measuring."""


def tune(
    quantized: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    original: str | os.PathLike[str],
    calibration: str | os.PathLike[str],
    steps: SupportsIndex = 150,
    tokens: SupportsIndex = 1024,
    window: SupportsIndex = 512,
    learning_rate: float = 1e-3,
    seed: SupportsIndex = 0,
    dtype: str = "fp32",
    device: "str | torch.device" = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> Report:
    """Writes `quantized` to `target` with other scales and tables: those with which the model's next-token
    distributions are nearest to the original's (docs/quantizers.md). Codes and all else stay byte for byte, but for
    config.json, which says "learned" and "tuned".

    quantized: a folder that `flute quantize` wrote. target: a folder that does not exist yet; it appears when it is
        whole. original: the folder that `quantized` was made from, a model that transformers'
        AutoModelForCausalLM loads.
    calibration: a text in UTF-8 like what the model will read; a line of one NUL character ends a document.
    steps: of Adam. tokens: that each step learns from, a multiple of `window`, the length of the pieces of text.
    learning_rate: of the scales, relative to their size, at the first step; it falls to 0 along a cosine, and that of
        the tables, relative to their largest magnitude, is half of it.
    seed: gives the order of the windows. The same call on the same machine with the same number of threads writes the
        same bytes.
    dtype: "fp32" or "bf16", what the model computes in. Scales and tables are trained in float32 either way.
    device: what PyTorch calls one.
    progress: called after each step with its number from 1, `steps` and the step's divergence.

    Raises TypeError, ValueError, flute.Error; ImportError without PyTorch or transformers.
    """
    steps = integer(steps, "tune: steps", 1, 1_000_000)
    window = integer(window, "tune: window", 2, 1_000_000)
    tokens = integer(tokens, "tune: tokens", window, 1_000_000_000)
    if tokens % window:
        raise ValueError(f"tune: tokens: expected a multiple of the window, {window}, found {tokens}")
    learning_rate = positive_float32(learning_rate, "tune: learning_rate", 1.0)
    seed = integer(seed, "tune: seed", 0, 2**63 - 1)
    if dtype not in _DTYPES:
        raise ValueError(f"tune: dtype: expected 'fp32' or 'bf16', found {dtype!r}")
    source, origin, goal = Path(quantized), Path(original), Path(target)
    for folder in (source, origin):
        if not (folder / "config.json").is_file():
            raise Error(f"tune: {folder}: expected the folder of a model, with config.json, found none", "io")
    _tune_files.check_target(goal, source)
    layers = Checkpoint(source)
    if not layers:
        raise Error(f"tune: {source}: expected a quantized checkpoint, found no quantized layer", "format")
    _tune_files.check_same_rest(source, origin, layers)
    text = _read(Path(calibration))

    torch, parts = _needed()
    _check_device(torch, device)
    model = parts.TunedModel(layers, origin, device, torch.float32 if dtype == "fp32" else torch.bfloat16)
    windows = parts.windows_of(text, origin, window, model.model.config)
    if len(windows) < 2:
        raise ValueError(f"tune: {calibration}: expected at least 2 windows of {window} tokens, found {len(windows)}")
    learned_from, measured = parts.held_out(windows)
    before = model.measure(measured)
    start = time.monotonic()
    parts.train(
        model,
        learned_from,
        steps=steps,
        batch=tokens // window,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
    )
    seconds = time.monotonic() - start
    learned = model.measure(measured)
    model.settle()
    after = model.measure(measured)
    _tune_files.write(source, goal, model.changed())
    return Report(before, learned, after, len(layers), steps * tokens, seconds)


def _needed() -> tuple[Any, Any]:
    """PyTorch, and what is built on it."""
    try:
        import torch

        from . import _tune_model
    except ImportError as error:
        raise ImportError(
            f"tune: expected PyTorch and transformers, found no {error.name}: pip install torch transformers"
        ) from error
    return torch, _tune_model


def _check_device(torch: Any, device: Any) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        words = str(error).strip().partition("\n")[0]
        raise ValueError(f"tune: device: expected one that PyTorch has, found {str(device)!r}: {words}") from None


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise Error(f"tune: {error}", "io") from None
    except UnicodeDecodeError as error:
        raise Error(f"tune: {path}: expected UTF-8, found another encoding at byte {error.start}", "format") from None


class _Progress:
    """A line on standard error: redrawn on a terminal, elsewhere one every ten seconds."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.start = self.last = time.monotonic()
        self.loss = 0.0

    def __call__(self, step: int, steps: int, loss: float) -> None:
        self.loss = loss if step == 1 else 0.9 * self.loss + 0.1 * loss
        now = time.monotonic()
        if not self.terminal and now - self.last < 10 and step < steps:
            return
        self.last = now
        left = (now - self.start) / step * (steps - step)
        line = f"step {step} of {steps}  divergence {self.loss:.4f}  {_duration(left)} left"
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if step == steps else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flute.tune",
        description="Trains scales and tables of a quantized checkpoint, the codes fixed, until its next-token "
        "distributions are nearest to the unquantized model's. Needs PyTorch and transformers.",
        epilog="example: python -m flute.tune small-3-bit small-3-bit-tuned --original small --calibration text.txt",
    )
    parser.add_argument("quantized", metavar="QUANTIZED", help="folder that `flute quantize` wrote")
    parser.add_argument("target", metavar="DST", help="folder to write; appears when everything is done")
    parser.add_argument("--original", required=True, metavar="SRC", help="folder that QUANTIZED was made from")
    parser.add_argument(
        "--calibration",
        required=True,
        metavar="TEXT",
        help="UTF-8 text like what the model will read; a line of one NUL character ends a document",
    )
    number = {"metavar": "N", "type": int}
    parser.add_argument("--steps", default=150, help="steps of Adam (default: 150)", **number)
    parser.add_argument("--tokens", default=1024, help="tokens of a step (default: 1024)", **number)
    parser.add_argument("--window", default=512, help="length of the pieces of text (default: 512)", **number)
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=1e-3,
        metavar="RATE",
        help="of the scales, relative; half of it for the tables (default: 0.001)",
    )
    parser.add_argument("--seed", default=0, help="order of the pieces of text (default: 0)", **number)
    parser.add_argument("--dtype", choices=_DTYPES, default="fp32", help="what the model computes in (default: fp32)")
    parser.add_argument("--device", default="cpu", help="as PyTorch names it (default: cpu)")
    parser.add_argument("--threads", help="threads to use (default: what PyTorch takes)", **number)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = vars(_parser().parse_args(arguments))
    threads = options.pop("threads")
    try:
        torch, _ = _needed()
        if threads is not None:
            torch.set_num_threads(integer(threads, "tune: threads", 1, 4096))
        from transformers.utils import logging

        logging.disable_progress_bar()
        report = tune(**options, progress=_Progress())
    except (ImportError, TypeError, ValueError, MemoryError, Error) as error:
        print(f"flute: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"layers       {report.layers} tuned")
    print(
        f"divergence   {report.before:.4f} -> {report.after:.4f} nats a token (rounding scales: {report.after - report.learned:+.5f})"
    )
    print(f"time         {_duration(report.seconds)}, {report.tokens / report.seconds:.0f} tokens/s")
    print(f"memory       {peak / 1e6:.0f} MB at most")
    print(f"written to   {options['target']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
