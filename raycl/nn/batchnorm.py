"""Batch norm whose groups are lanes or the global batch, on any device and number of ranks."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raycl.nn import collectives, lanes

Scope = Literal["lane", "global"]


class BatchNorm(nn.Module):
    """Batch norm over (N, C) or (N, C, H, W), with torch's names for parameters and buffers.

    In training, `scope` says whose rows share their statistics: those of a lane (all views that
    are in the tensor, see `lanes.Layout`), or all rows of all ranks. Running statistics move by the
    mean over this rank's lanes, or by the global statistics. In evaluation they normalise.

    Args:
        features: channels C.
        scope: "lane" or "global".
        weight: whether there is a learned scale.
        bias: whether there is a learned shift.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        features: int,
        scope: Scope = "lane",
        eps: float = 1e-5,
        momentum: float = 0.1,
        weight: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.features = features
        self.scope = scope
        self.eps = eps
        self.momentum = momentum
        self.register_parameter("weight", nn.Parameter(torch.ones(features)) if weight else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(features)) if bias else None)
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        layout = lanes.current()
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        update = layout.update_statistics
        if update:
            self.num_batches_tracked += 1
        if self.scope == "lane" and layout.lanes > 1:
            y, mean, var = self._lanes(x, layout)
        elif self.scope == "global" and collectives.world_size() > 1:
            y, mean, var = _GlobalNorm.apply(x, self.weight, self.bias, self.eps)
        else:
            # To be thrown away, but there: a recomputation must save what the first pass saved.
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(
                x,
                mean if update else mean.clone(),
                var if update else var.clone(),
                self.weight,
                self.bias,
                training=True,
                momentum=self.momentum,
                eps=self.eps,
            )
        if update:
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
        return y

    def _lanes(self, x: Tensor, layout: lanes.Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Normalises each lane by itself; also the lanes' mean statistics, (C,) each."""
        parts = layout.split(x)
        statistics = self.running_mean.new_zeros(layout.lanes, 2, self.features)
        normalised = []
        for lane, (mean, var) in enumerate(statistics):
            rows = parts[:, lane].flatten(0, 1)
            # A momentum of 1 leaves the lane's own statistics in the buffers.
            y = F.batch_norm(rows, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            normalised.append(y.unflatten(0, (len(parts), -1)))
        mean, var = statistics.mean(0)
        return torch.stack(normalised, 1).flatten(0, 2), mean, var

    def extra_repr(self) -> str:
        return f"{self.features}, scope={self.scope!r}"


def average_statistics(module: nn.Module) -> None:
    """Averages the running statistics of all batch norms in a module over ranks, in place.

    The update is linear in a batch's statistics and training never reads the running ones, so
    averaging once, before an evaluation or a checkpoint, equals averaging after every step.
    """
    collectives.average(running_statistics(module))


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances of all batch norms in a module, to read or to write."""
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]


class _GlobalNorm(torch.autograd.Function):
    """Normalises with the statistics of all ranks' rows; also returns mean and unbiased variance.

    Torch's own kernels do the local work: normalising with given statistics is what batch norm
    does in evaluation, and its gradients for scale and shift are the sums over rows that the
    gradient through the statistics needs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        precise = torch.promote_types(x.dtype, torch.float32)
        # The running buffers that this kernel asks for are thrown away, and only set its precision.
        # It reads each value once; torch.var_mean took ten times as long on a CPU.
        unused = x.new_zeros(2, x.shape[1], dtype=precise)
        mean, var = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
        rows = mean.new_full((1,), x.numel() // x.shape[1])
        channels = len(mean)
        every = collectives.concat(torch.cat([mean, var, rows])[None])
        means, variances, rows = every.split([channels, channels, 1], dim=1)
        total = rows.sum()
        mean = (means * rows).sum(0) / total
        var = ((variances + (means - mean).square()) * rows).sum(0) / total
        y = F.batch_norm(x, mean, var, weight, bias, eps=eps)
        unbiased = var * (total / (total - 1))
        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, unbiased)
        return y, mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, var, total = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        dot, shift = collectives.all_reduce_sum(torch.stack([grad_weight, grad_bias])) / total
        inverse = (var + ctx.eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        # dx = scale * (dy - mean(dy) - x_hat * mean(dy x_hat)), means over the global batch
        slope = (-scale * inverse * dot).to(x.dtype)
        offset = (scale * (inverse * mean * dot - shift)).to(x.dtype)
        shape = [1, -1] + [1] * (x.dim() - 2)
        grad_x = grad_x.addcmul_(x, slope.view(shape)).add_(offset.view(shape))
        needs = ctx.needs_input_grad
        return grad_x, grad_weight if needs[1] else None, grad_bias if needs[2] else None, None
