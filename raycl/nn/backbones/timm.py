"""Any model of timm (PyTorch Image Models) as an encoder."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from raycl.errors import RayclError
from raycl.nn.backbones.encoder import Encoder
from raycl.nn.batchnorm import BatchNorm, Scope
from raycl.nn.recompute import recompute_in_backward


def check_name(name: str) -> None:
    """Raises a RayclError where timm is missing or has no model of that name."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise RayclError('timm is not installed; pip install "raycl[timm]"') from error
    known = timm.list_models()
    if name not in known:
        close = get_close_matches(name, known)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise RayclError(f"timm {timm.__version__} has no model {name!r}{hint}")


def timm_encoder(
    name: str, scope: Scope = "lane", recompute: bool = False, **options: Any
) -> Encoder:
    """A timm model without classifier and without its weights, parameters named as there.

    Its batch norms become raycl's. `maps` gives what timm's `forward_intermediates` does, named by
    the layers in timm's `feature_info`.

    Args:
        name: as in `timm.list_models()`.
        scope: whose rows batch norm shares its statistics with.
        recompute: whether the stages keep only their inputs for the backward pass.
        options: passed on to `timm.create_model`: `img_size`, `drop_path_rate`, ...

    Raises:
        RayclError: timm is not installed, has no such model or option, or does not tell its stages.
    """
    check_name(name)
    import timm

    try:
        model: Any = timm.create_model(name, num_classes=0, **options)
    except TypeError as error:
        raise RayclError(f"timm cannot make {name!r} with {options}: {error}") from error
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, key, _of_lanes(child, scope))
    if recompute:
        _recompute_stages(name, model)
    # Not a wrapper around the model, because its state dict shall load into timm and from it.
    model.__class__ = type(type(model).__name__, (_Timm, type(model)), {})
    model.dim = model.head_hidden_size
    return model


def _recompute_stages(name: str, model: Any) -> None:
    layers = dict(model.named_modules())
    stages = [layers[stage["module"]] for stage in model.feature_info if stage["module"] in layers]
    # A stage without parameters is an activation, which may work in place on what is kept.
    stages = [stage for stage in stages if list(stage.parameters())]
    if not stages:
        raise RayclError(f"timm does not tell the stages of {name!r}: leave recompute out")
    for stage in stages:
        recompute_in_backward(stage)


class _Timm(Encoder):
    feature_info: Any
    forward_intermediates: Any

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        names = [stage["module"] for stage in self.feature_info]
        maps = self.forward_intermediates(x, intermediates_only=True)
        return dict(zip(names, maps, strict=True))


class _NormAct(BatchNorm):
    """timm's batch norm with dropout and activation, for `BatchNormAct2d`."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def _of_lanes(norm: Any, scope: Scope) -> BatchNorm:
    """The same batch norm with statistics per lane or over all ranks."""
    kind = _NormAct if hasattr(norm, "act") else BatchNorm
    ours = kind(norm.num_features, scope, norm.eps, norm.momentum, norm.affine, norm.affine)
    for name, child in norm.named_children():
        ours.add_module(name, child)
    ours.load_state_dict(norm.state_dict())
    return ours
