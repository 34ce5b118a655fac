"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from raycl.errors import RayclError
from raycl.train.sharding import is_sharded, like

_Tensors = list[Tensor] | tuple[Tensor, ...]


class OptimizerConfig(Protocol):
    """What this module reads of a recipe's optimizer section."""

    @property
    def name(self) -> str: ...

    @property
    def lr(self) -> float: ...

    @property
    def lr_scaling(self) -> str: ...

    @property
    def momentum(self) -> float: ...

    @property
    def nesterov(self) -> bool: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def betas(self) -> tuple[float, float]: ...

    @property
    def schedule(self) -> str: ...


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017) as SimCLR's published code has it.

    With g the gradient plus weight_decay * w, and a ratio of norms (1 where one of them is 0):

    - classic: v <- momentum v + lr trust |w| / |g| g; w <- w - v
    - nesterov: v as in classic; w <- w - (momentum v + lr trust |w| / |g| g)
    - popular: v <- momentum v + g; w <- w - lr trust |w| / |v| v

    Groups may set `weight_decay` and `adapt`; without `adapt`, which norms and biases should not
    have, trust |w| / |g| is 1.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: decay of the velocity v.
        weight_decay: L2 regularisation.
        trust: trust coefficient.
        variant: which of the three updates.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        variant: Literal["classic", "nesterov", "popular"] = "classic",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "variant": variant,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        gradients: _Tensors = [weight.grad for weight in weights if weight.grad is not None]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        velocities = [self.state[weight]["momentum_buffer"] for weight in weights]

        torch._foreach_mul_(velocities, momentum)
        if group["variant"] == "popular":
            torch._foreach_add_(velocities, gradients)
            updates = self._adapted(velocities, weights, group)
            torch._foreach_add_(weights, updates, alpha=-lr)
            return
        updates = self._adapted(gradients, weights, group)
        torch._foreach_add_(velocities, updates, alpha=lr)
        if group["variant"] == "nesterov":
            torch._foreach_add_(weights, velocities, alpha=-momentum)
            torch._foreach_add_(weights, updates, alpha=-lr)
        else:
            torch._foreach_sub_(weights, velocities)

    @staticmethod
    def _adapted(updates: _Tensors, weights: list[Tensor], group: dict[str, Any]) -> _Tensors:
        if not group["adapt"]:
            return updates
        of_weights = torch.stack(torch._foreach_norm(weights))
        of_updates = torch.stack(torch._foreach_norm(updates))
        ratios = torch.where(
            (of_weights > 0) & (of_updates > 0), group["trust"] * of_weights / of_updates, 1.0
        )
        return torch._foreach_mul(updates, ratios.unbind())


def rate(kind: str, step: int, total: int, warmup: int) -> float:
    """The learning rate's factor at a step, counted from 0.

    Args:
        kind: "cosine": linearly from 0 over the warm-up, then along half a cosine to 0 at `total`;
            "poly": the same warm-up, then (1 - share of what is left) ** 0.9, as segmentation has
            it; "constant": the same warm-up, then 1; "fixed": 1 throughout.
        step: optimizer updates made so far.
        total: updates of the whole run.
        warmup: updates of the warm-up.
    """
    if kind == "fixed":
        return 1.0
    if kind not in ("cosine", "poly", "constant"):
        raise RayclError(f"schedule {kind!r} is unknown; choose cosine, poly, constant or fixed")
    if step < warmup:
        return step / warmup
    if kind == "constant" or total <= warmup:
        return 1.0
    done = min(1.0, (step - warmup) / (total - warmup))
    return (1 - done) ** 0.9 if kind == "poly" else 0.5 * (1.0 + math.cos(math.pi * done))


def scaled_lr(config: OptimizerConfig, global_batch: int) -> float:
    """The peak learning rate of a run with `global_batch` samples per step over all ranks.

    "linear" is lr * batch / 256, "sqrt" is lr * sqrt(batch) (SimCLR, appendix B.1).
    """
    match config.lr_scaling:
        case "none":
            return config.lr
        case "linear":
            return config.lr * global_batch / 256
        case "sqrt":
            return config.lr * math.sqrt(global_batch)
    raise RayclError(f"lr_scaling {config.lr_scaling!r} is unknown; choose none, linear or sqrt")


def build(
    groups: Iterable[dict[str, Any]], config: OptimizerConfig, global_batch: int
) -> Optimizer:
    """Makes the optimizer that a recipe asks for; `set_rate` must be called before each step.

    torch's own are fused, which on a CPU takes every gradient to lie in memory as its parameter
    does. Autograd sees to that; whoever sets `grad` by hand must too.

    Args:
        groups: a method's parameter groups: "params", and optionally "decay" (True; False, for
            norms and biases, exempts from weight decay and LARS's adaptation), "lr_scale" (1.0)
            and "schedule" (of this group, None for the recipe's; see `rate`).
        config: the recipe's optimizer section.
        global_batch: samples per step over all ranks.
    """
    lr = scaled_lr(config, global_batch)
    prepared: list[dict[str, Any]] = []
    for group in groups:
        decay = group.get("decay", True)
        base = lr * group.get("lr_scale", 1.0)
        entry = {
            "params": list(group["params"]),
            "lr": base,
            "base_lr": base,
            "schedule": group.get("schedule"),
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        if config.name == "lars":
            entry["adapt"] = decay
        prepared.append(entry)
    match config.name:
        case "lars":
            variant: Literal["classic", "nesterov"] = "nesterov" if config.nesterov else "classic"
            return _untraced(LARS)(prepared, lr, config.momentum, variant=variant)
        case "sgd":
            # Its fused kernel is the only one that knows no DTensors (torch 2.15).
            fused = not any(is_sharded(p) for group in prepared for p in group["params"])
            sgd = _untraced(torch.optim.SGD)(
                prepared, lr, config.momentum, nesterov=config.nesterov, fused=fused
            )
            if config.momentum:
                sgd.register_step_pre_hook(_start_momentum)
            return sgd
        case "adam":
            return _untraced(torch.optim.Adam)(prepared, lr, config.betas, fused=True)
        case "adamw":
            return _untraced(torch.optim.AdamW)(prepared, lr, config.betas, fused=True)
    raise RayclError(f"optimizer {config.name!r} is unknown; choose lars, sgd, adam or adamw")


def _untraced(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """The optimizer without what keeps it out of the graphs of torch.compile.

    For that, torch imports torch._dynamo when one is made: 4 s of CPU in every worker, as much as
    torch itself. raycl compiles encoders alone.
    """
    names = ("add_param_group", "step", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(plain["step"])})


def _start_momentum(optimizer: Optimizer, *_: Any) -> None:
    """Gives velocities to weights that have none, such as those of a head that was reset.

    torch's fused SGD starts those of all weights of a group at once, or fails.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and not optimizer.state[weight]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads a state, laid out in memory as the weights are: fused kernels take that for given."""
    optimizer.load_state_dict(state)
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == weight.shape:
                values[name] = torch.empty_like(weight, dtype=value.dtype)
                values[name].copy_(like(value, weight))


def set_rate(
    optimizer: Optimizer, config: OptimizerConfig, step: int, total: int, warmup: int
) -> float:
    """Writes every group's learning rate for an update; returns the first group's.

    Args:
        optimizer: made by `build`.
        config: the recipe's optimizer section.
        step: updates that this optimizer has made so far.
        total: its updates in the whole run.
        warmup: its updates in the warm-up.
    """
    for group in optimizer.param_groups:
        kind = group["schedule"] or config.schedule
        group["lr"] = group["base_lr"] * rate(kind, step, total, warmup)
    return float(optimizer.param_groups[0]["lr"])
