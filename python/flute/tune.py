"""Trains the scales and tables of a quantized checkpoint until the model says what the unquantized one says.

    python -m flute.tune small small-3-bit small-3-bit-tuned --text text.txt

The same as a function is `flute.tune.tune`. Needs PyTorch and transformers, 5 or later; docs/tuning.md has the rest.
"""

import argparse
import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias

from . import _tune_files
from ._arrays import integer, positive_float32
from ._checkpoint import Checkpoint
from ._library import Error

if TYPE_CHECKING:
    import torch

    from ._tune_model import TunedModel, Windows

__all__ = ["Report", "tune"]

Progress: TypeAlias = Callable[[str, int, int, float], None]

_DTYPES = ("fp32", "bf16")
_METHODS = ("tables", "nfl")


@dataclasses.dataclass(frozen=True)
class Report:
    """What tuning has reached, measured on text that was not learned from.

    Divergences are KL(original || quantized) of the next token's distribution, in nats, the mean over all tokens.
    Perplexities are those of `flute perplexity`.
    """

    divergence_before: float
    """Of the checkpoint that was there."""
    divergence: float
    """Of the one that was written."""
    perplexity_before: float
    perplexity: float
    original_perplexity: float
    measured_tokens: int
    layers: int
    tokens: int
    """Learned from, those twice that were taken twice."""
    seconds: float
    """Of all steps, without loading and measuring."""


def tune(
    original: str | os.PathLike[str],
    quantized: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str],
    method: str = "tables",
    held_out: str | os.PathLike[str] | None = None,
    steps: SupportsIndex = 150,
    tokens: SupportsIndex = 1024,
    window: SupportsIndex = 512,
    learning_rate: float | None = None,
    seed: SupportsIndex = 0,
    dtype: str = "fp32",
    device: "str | torch.device" = "cpu",
    recompute: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Writes `quantized` to `target` with other scales and tables: those with which the model's next-token
    distributions are nearer to the original's (docs/tuning.md). Codes and all else stay byte for byte, but for
    config.json, which says "learned" and "tuned".

    original: the folder that `quantized` was made from, a model that transformers' AutoModelForCausalLM loads.
    quantized: a folder that `flute quantize` wrote. target: a folder that does not exist yet; it appears when it is
        whole.
    text: a file in UTF-8 like what the model will read; a line of one NUL character ends a document.
    method: "tables": scales and tables, by the divergence. "nfl", learned NormalFloat: only scales, by the loss of
        predicting `text`; the table stays, and codes are always those of the nearest values, so that they change.
    held_out: a file to measure with; None: some windows of `text`, which are then not learned from.
    steps: of Adam. tokens: that each step learns from, a multiple of `window`, the length of the pieces of text.
    learning_rate: of the scales, relative to their size, at the first step; it falls to 0 along a cosine, and that of
        the tables, relative to their largest magnitude, is half of it. None: 0.016 / 2^bits, with nfl
        0.064 / 2^bits, each layer's own.
    seed: gives the order of the windows. On the CPU the same call with the same number of threads, on the same machine
        with the same PyTorch, writes the same bytes.
    dtype: "fp32" or "bf16", what the model computes in. Scales and tables are trained in float32 either way.
    device: what PyTorch calls one.
    recompute: keep less of the forward pass in memory and compute it again in the backward pass, which takes longer.
    progress: called as it goes with "before", "tune" or "after", how many of how many windows ("before" and "after",
        which measure) or steps ("tune") are done, and the divergence: the mean so far, or the step's loss.

    Raises TypeError, ValueError, flute.Error; ImportError without PyTorch or transformers.
    """
    steps = integer(steps, "tune: steps", 1, 1_000_000)
    window = integer(window, "tune: window", 2, 1_000_000)
    tokens = integer(tokens, "tune: tokens", window, 1_000_000_000)
    if tokens % window:
        raise ValueError(f"tune: tokens: expected a multiple of the window, {window}, found {tokens}")
    if learning_rate is not None:
        learning_rate = positive_float32(learning_rate, "tune: learning_rate", 1.0)
    seed = integer(seed, "tune: seed", 0, 2**63 - 1)
    if dtype not in _DTYPES:
        raise ValueError(f"tune: dtype: expected 'fp32' or 'bf16', found {dtype!r}")
    if method not in _METHODS:
        raise ValueError(f"tune: method: expected 'tables' or 'nfl', found {method!r}")
    origin, source, goal = Path(original), Path(quantized), Path(target)
    layers = _layers(origin, source)
    _tune_files.check_target(goal, source)
    to_learn, to_measure = Path(text), None if held_out is None else Path(held_out)
    learned_text, measured_text = _read(to_learn), None if to_measure is None else _read(to_measure)

    torch, parts = _needed()
    _check_device(torch, device)
    loaded = parts.load(origin, torch.float32 if dtype == "fp32" else torch.bfloat16).to(device)
    model: TunedModel = parts.TunedModel(layers, loaded, method, recompute)

    def windows_of(path: Path, content: str, least: int) -> "Windows":
        result: Windows = parts.windows_of(content, origin, window, model.model.config)
        if len(result) < least:
            expected = f"{least} window{'s' * (least > 1)} of {window} tokens"
            raise ValueError(f"tune: {path}: expected at least {expected}, found {len(result)}")
        return result

    if to_measure is None or measured_text is None:
        learned_from, measured = parts.held_out(windows_of(to_learn, learned_text, 2))
    else:
        learned_from = windows_of(to_learn, learned_text, 1)
        measured = windows_of(to_measure, measured_text, 1)

    def stage(name: str) -> Callable[[int, int, float], None]:
        return lambda done, total, value: progress(name, done, total, value) if progress is not None else None

    batch = tokens // window
    before = model.measure(measured, batch, stage("before"))
    start = time.monotonic()
    parts.train(
        model,
        learned_from,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        progress=stage("tune"),
    )
    seconds = time.monotonic() - start
    model.settle()
    after = model.measure(measured, batch, stage("after"))
    _tune_files.write(source, goal, model.changed(), method)
    return Report(
        before.divergence,
        after.divergence,
        before.perplexity,
        after.perplexity,
        after.original_perplexity,
        len(measured) * window,
        len(layers),
        steps * tokens,
        seconds,
    )


def _layers(original: Path, quantized: Path) -> Checkpoint:
    """Those of `quantized`, which must be quantized from `original`."""
    for folder in (original, quantized):
        if not (folder / "config.json").is_file():
            raise Error(f"tune: {folder}: expected the folder of a model, with config.json, found none", "io")
    layers = Checkpoint(quantized)
    if not layers:
        raise Error(f"tune: {quantized}: expected a quantized checkpoint, found no quantized layer", "format")
    if len(Checkpoint(original)):
        raise Error(f"tune: {original}: expected the model before it was quantized, found quantized layers", "format")
    _tune_files.check_same_rest(quantized, original, layers)
    return layers


def _needed() -> tuple[Any, Any]:
    """PyTorch, and what is built on it."""
    hint = "pip install torch 'transformers>=5'"
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(f"tune: expected PyTorch and transformers, found no {error.name}: {hint}") from error
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise ImportError(f"tune: expected transformers 5 or later, found {transformers.__version__}: {hint}")
    from . import _tune_model

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


class _Bar:
    """The progress on standard error: a bar, redrawn, on a terminal; elsewhere a line every ten seconds."""

    _WIDTH = 24
    _NAMES = {"before": "measure", "tune": "tune", "after": "measure"}

    def __init__(self, method: str) -> None:
        self.loss = "loss" if method == "nfl" else "divergence"  # of a step
        self.terminal = sys.stderr.isatty()
        self.stage = ""
        self.start = self.last = time.monotonic()
        self.value = 0.0

    def __call__(self, stage: str, done: int, total: int, value: float) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.start, self.value = stage, now, value
        # A step's loss goes up and down with its text, a mean of those measured does not.
        self.value = 0.9 * self.value + 0.1 * value if stage == "tune" else value
        if now - self.last < (0.1 if self.terminal else 10) and not (self.terminal and done == total):
            return
        self.last = now
        left = f"  {_duration((now - self.start) / (done - 1) * (total - done))} left" if done > 1 else ""
        share, unit = done / total, "step" if stage == "tune" else "window"
        name = self.loss if stage == "tune" else "divergence"
        figures = f"{100 * share:.0f} %  {unit} {done} of {total}  {name} {self.value:.4f}{left}"
        if self.terminal:
            filled = int(share * self._WIDTH)
            bar = "█" * filled + "░" * (self._WIDTH - filled)
            sys.stderr.write(f"\r\x1b[K{self._NAMES[stage]} {bar} {figures}" + ("\r\x1b[K" if done == total else ""))
        else:
            sys.stderr.write(f"{self._NAMES[stage]}: {figures}\n")
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flute.tune",
        description="Trains the scales and tables of a quantized checkpoint, its codes fixed, so that the model's "
        "next-token distributions come nearer to the unquantized model's. Needs PyTorch and transformers.",
        epilog="example: python -m flute.tune small small-3-bit small-3-bit-tuned --text text.txt",
    )
    parser.add_argument("original", metavar="SRC", help="folder of the unquantized model")
    parser.add_argument("quantized", metavar="QUANTIZED", help="folder that `flute quantize SRC QUANTIZED` wrote")
    parser.add_argument("target", metavar="DST", help="folder to write; appears when everything is done")
    parser.add_argument(
        "--text",
        required=True,
        metavar="TEXT",
        help="UTF-8 text like what the model will read, to learn from; a line of one NUL character ends a document",
    )
    parser.add_argument(
        "--method",
        choices=_METHODS,
        default="tables",
        help="tables (default): scales and tables learn, codes stay; nfl (learned NormalFloat): only scales learn, by "
        "predicting the text, and codes follow them",
    )
    parser.add_argument(
        "--held-out", metavar="TEXT", help="another text, to measure with (default: 8 windows of the first, left out)"
    )
    number: dict[str, Any] = {"metavar": "N", "type": int}
    parser.add_argument("--steps", default=150, help="steps of Adam (default: 150)", **number)
    parser.add_argument("--tokens", default=1024, help="tokens of a step (default: 1024)", **number)
    parser.add_argument("--window", default=512, help="tokens the model sees at once (default: 512)", **number)
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="of the scales, relative; half of it for the tables (default: 0.016 / 2^bits, each layer's own; with nfl "
        "0.064 / 2^bits)",
    )
    parser.add_argument("--seed", default=0, help="gives the order of the windows (default: 0)", **number)
    parser.add_argument("--dtype", choices=_DTYPES, default="fp32", help="what the model computes in (default: fp32)")
    parser.add_argument("--device", default="cpu", help="as PyTorch names it (default: cpu)")
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="keep less in memory: of each block only what goes into it, the rest is computed again",
    )
    parser.add_argument("--threads", help="threads to use (default: what PyTorch takes)", **number)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = vars(_parser().parse_args(arguments))
    threads, as_json = options.pop("threads"), options.pop("json")
    try:
        if threads is not None:
            _needed()[0].set_num_threads(integer(threads, "tune: threads", 1, 4096))
        report = tune(**options, progress=_Bar(options["method"]))
    except (ImportError, TypeError, ValueError, MemoryError, Error) as error:
        print(f"flute: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if as_json:
        print(json.dumps({**dataclasses.asdict(report), "peak_bytes": peak, "target": options["target"]}))
    else:
        _print(report, peak, options)
    if report.divergence > report.divergence_before:
        print("flute: warning: the divergence has grown: try a lower --learning-rate or more --text", file=sys.stderr)
    return 0


def _print(report: Report, peak: int, options: dict[str, Any]) -> None:
    held_out = options["held_out"] or f"{options['text']}, not learned from"
    print(f"layers       {report.layers} tuned")
    print(f"divergence   {report.divergence_before:.4f} -> {report.divergence:.4f} nats a token")
    original = f"{report.original_perplexity:.4f} unquantized"
    print(f"perplexity   {report.perplexity_before:.4f} -> {report.perplexity:.4f} ({original})")
    print(f"measured on  {report.measured_tokens:,} tokens of {held_out}")
    print(f"time         {_duration(report.seconds)}, {report.tokens / report.seconds:,.0f} tokens/s")
    print(f"memory       {peak / 1e6:,.0f} MB at most")
    print(f"written to   {options['target']}")


if __name__ == "__main__":
    sys.exit(main())
