"""The linear layer whose scales and table learn while its codes stay."""

from typing import Any

import numpy as np
import torch

from ._arrays import BF16, FP16, Array, Element
from ._library import Error
from ._tensor import QuantizedTensor


def look_up(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Each code's value, [N, K]. table: [2^bits] or [N, 2^bits]. codes: uint8 [N, K]."""
    index = codes.int()
    if table.dim() == 2:
        index += torch.arange(len(table), dtype=torch.int32, device=table.device)[:, None] * table.shape[1]
    return table.flatten().index_select(0, index.flatten()).view(codes.shape)


def sum_of_codes(values: torch.Tensor, codes: torch.Tensor, size: int) -> torch.Tensor:
    """For each row and code the sum of the values that stand where the code does: [N, size]."""
    if values.device.type == "cpu":
        return values.new_zeros(len(values), size).scatter_add_(1, codes.long(), values)
    return sum_of_each_code(values, codes, size)


def sum_of_each_code(values: torch.Tensor, codes: torch.Tensor, size: int) -> torch.Tensor:
    """The same for devices on which scatter_add_ is atomic: many threads at few places, in an order that changes."""
    return torch.stack([torch.where(codes == code, values, 0).sum(1) for code in range(size)], 1)


def spread(scales: torch.Tensor, group: int, k: int) -> torch.Tensor:
    """Each weight's scale, [N, K]; the last group may be short."""
    return scales.repeat_interleave(group, 1)[:, :k]


def sum_of_groups(values: torch.Tensor, group: int) -> torch.Tensor:
    """The sum of each group of the last dimension: [..., K] to [..., ceil(K / group)]."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % group))
    return padded.unflatten(-1, (-1, group)).sum(-1)


class Multiply(torch.autograd.Function):
    """Y = X W^T for W[n, k] = table[codes[n, k]] * scales[n, k / group], with gradients for X, scales and table.

    x: [..., K]. scales: fp32 [N, ceil(K / group)]. table: fp32 [2^bits] or [N, 2^bits]. codes: uint8 [N, K].
    Neither W nor its gradient G = dY^T X outlives the call. By the chain rule a scale's gradient is the sum over its
    group of G * table[code], a table value's the sum over the weights of its code of G * scale.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scales: torch.Tensor, table: torch.Tensor, codes: torch.Tensor, group: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, scales, table, codes)
        ctx.group = group
        weight = look_up(table, codes).mul_(spread(scales, group, codes.shape[1]))
        return torch.nn.functional.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scales, table, codes = ctx.saved_tensors
        values, wide = look_up(table, codes), spread(scales, ctx.group, codes.shape[1])
        to_x = gradient @ (values * wide).to(gradient.dtype) if ctx.needs_input_grad[0] else None
        to_weight = (gradient.flatten(0, -2).T @ x.flatten(0, -2)).float()
        to_scales = sum_of_groups(values.mul_(to_weight), ctx.group)
        to_table = sum_of_codes(to_weight.mul_(wide), codes, table.shape[-1])
        return to_x, to_scales, to_table if table.dim() == 2 else to_table.sum(0), None, None


def nearest(table: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The code of the table's value nearest to each value: int64, as `values`. table: [2^bits]."""
    ascending, order = table.sort()
    return order[torch.bucketize(values, (ascending[1:] + ascending[:-1]) / 2)]


class MultiplyRounded(torch.autograd.Function):
    """Y = X Q^T, Q being the weights rounded with these scales, with gradients for X and scales.

    Q[n, k] = table[c] * s, c the code of the value nearest to r = W[n, k] / s. Straight through the rounding, as if
    it moved as r does between the table's ends, and not at all beyond: dQ/ds = table[c] - r, and table[c] beyond.
    x: [..., K]. scales: fp32 [N, ceil(K / group)]. table: fp32 [2^bits]. weight: [N, K].
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scales: torch.Tensor, table: torch.Tensor, weight: torch.Tensor, group: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, scales, table, weight)
        ctx.group = group
        wide = spread(scales, group, weight.shape[1])
        rounded = table[nearest(table, ratios(weight, wide))].mul_(wide)
        return torch.nn.functional.linear(x, rounded.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scales, table, weight = ctx.saved_tensors
        wide = spread(scales, ctx.group, weight.shape[1])
        ratio = ratios(weight, wide)
        values = table[nearest(table, ratio)]
        to_x = gradient @ (values * wide).to(gradient.dtype) if ctx.needs_input_grad[0] else None
        to_weight = (gradient.flatten(0, -2).T @ x.flatten(0, -2)).float()
        inside = (ratio >= table.min()) & (ratio <= table.max())
        slope = values - torch.where(inside, ratio, 0)
        return to_x, sum_of_groups(slope.mul_(to_weight), ctx.group), None, None, None


def ratios(weight: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """W / scale, 0 where the scale is."""
    return torch.where(wide == 0, 0, weight.float() / wide)


class TunedLinear(torch.nn.Module):
    """`linear`, and the same layer of q's codes: `original` says which of the two multiplies.

    The parameters of the second start at 0, which is q:
    log_scales: [N, ceil(K / group)]; a scale is q's times exp of it, so that steps are relative and signs stay.
    shift: as the table; a table is q's plus its largest magnitude times this.
    """

    def __init__(self, q: QuantizedTensor, linear: torch.nn.Linear) -> None:
        super().__init__()
        device = linear.weight.device
        self.linear, self.original = linear, False
        self.group = q.k if q.group_size < 0 else q.group_size
        self.element = q._scale_element
        self.codes = torch.from_numpy(q.codes()).to(device)
        self.start_scales = _fp32(q._scales).to(device)
        self.start_table = torch.from_numpy(q.codebook.copy()).to(device)
        self.offsets = None if q._offsets is None else _fp32(q._offsets).to(device)
        self.log_scales = torch.nn.Parameter(torch.zeros_like(self.start_scales))
        self.shift = torch.nn.Parameter(torch.zeros_like(self.start_table))

    def scales(self) -> torch.Tensor:
        return self.start_scales * self.log_scales.exp()

    def table(self) -> torch.Tensor:
        return self.start_table + self.start_table.abs().max() * self.shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.original:
            return self.linear(x)
        y: torch.Tensor = Multiply.apply(x, self.scales(), self.table(), self.codes, self.group)
        if self.offsets is not None:
            y = y + sum_of_groups(x, self.group) @ self.offsets.T.to(x.dtype)
        return y if self.linear.bias is None else y + self.linear.bias

    @torch.no_grad()
    def settle(self, name: str) -> None:
        """Rounds scales and table to what a file holds, and starts from there. flute.Error if one is not finite."""
        scales, table = self.scales(), self.table()
        dtype = {FP16: torch.float16, BF16: torch.bfloat16}.get(self.element, torch.float32)
        scales = scales.to(dtype).float()
        if not (scales.isfinite().all() and table.isfinite().all()):
            raise Error(f"tune: {name}: expected finite scales and tables, found others: lower the learning rate")
        self.start_scales, self.start_table = scales, table
        self.log_scales.zero_()
        self.shift.zero_()

    def stored(self) -> tuple[Array, Array]:
        """Scales and table as a file holds them, after `settle`; bf16 as bits."""
        return _stored(self.start_scales.cpu().numpy(), self.element), self.start_table.cpu().numpy()


class RoundedLinear(TunedLinear):
    """Learned NormalFloat: only scales learn, and codes are always those of the values nearest to W / scale."""

    def __init__(self, q: QuantizedTensor, linear: torch.nn.Linear) -> None:
        super().__init__(q, linear)
        if self.offsets is not None or self.start_table.dim() != 1:
            raise Error("tune: nfl: expected layers with one table and no offsets, found others", "format")
        self.shift.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.original:
            return self.linear(x)
        y: torch.Tensor = MultiplyRounded.apply(x, self.scales(), self.start_table, self.linear.weight, self.group)
        return y if self.linear.bias is None else y + self.linear.bias

    @torch.no_grad()
    def settle(self, name: str) -> None:
        super().settle(name)
        weight = self.linear.weight
        ratio = ratios(weight, spread(self.start_scales, self.group, weight.shape[1]))
        self.codes = nearest(self.start_table, ratio).to(torch.uint8)


def _fp32(values: Array) -> torch.Tensor:
    """uint16 stands for bf16, the upper half of fp32."""
    if values.dtype == np.uint16:
        return torch.from_numpy((values.astype(np.uint32) << 16).view(np.float32))
    return torch.from_numpy(values.astype(np.float32))


def _stored(values: Array, element: Element) -> Array:
    """The reverse, of values that are exact in that type."""
    if element is BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(element.storage)
