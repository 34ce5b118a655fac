"""Image operations on whole batches with a parameter per sample, and the crop of one image.

Batches are (N, 3, H, W) float32 in [0, 1]. Formulas are those of torchvision's tensor backend. What
becomes of a sample does not depend on the rest of its batch. On a GPU nothing here waits for it: no
shape depends on a value, and no constant is copied there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

try:
    from raycl.views import _crop
except ImportError:  # no compiler where raycl was installed, or a processor without AVX2
    _crop = None  # type: ignore[assignment]

Interpolation = Literal["bilinear", "bicubic"]

HUE = 3  # its number among brightness, contrast, saturation, hue
EXACT = 64  # largest side in pixels of a bicubic view that is resized in floats
_RESIZE = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}


def to_float(pixels: Tensor) -> Tensor:
    """uint8 of any memory format -> contiguous float32 in [0, 1]."""
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    channels = zip(x.unbind(1), mean, std, strict=True)
    return torch.stack([(values - m) / s for values, m, s in channels], 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blends with black; factor (N,)."""
    return _blend_(x.clone(), _coefficients(factor)[:, 0])


def add_brightness(x: Tensor, delta: Tensor) -> Tensor:
    """Adds delta (N,) to every pixel."""
    return _blend_(x.clone(), _coefficients(delta, additive_brightness=True)[:, 0])


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean of the grey image; factor (N,)."""
    return _blend_(x.clone(), _coefficients(factor)[:, 1])


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blends with the grey image; factor (N,)."""
    return _blend_(x.clone(), _coefficients(factor)[:, 2])


def adjust_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue of HSV by a fraction of the circle; turn (N,)."""
    return _turn_(x.clone(), turn)


def color_jitter(
    x: Tensor, order: Tensor, factors: Tensor, *, additive_brightness: bool = False
) -> Tensor:
    """Brightness, contrast, saturation and hue, each sample in its own order, clipped after each.

    Three of the four are one formula with other coefficients. So the batch takes three such steps,
    the hue, and three more; on the side of the hue where it is not due, a step does nothing.

    Args:
        order: (N, 4) permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue.
        factors: (N, 4) in the order of that numbering; 1, 1, 1, 0 change nothing.
        additive_brightness: the first factor is added instead, and 0 changes nothing.
    """
    is_hue = (order == HUE).int()
    blends = order.gather(1, is_hue.argsort(dim=1, stable=True)[:, :3])
    steps = _coefficients(factors[:, :3], additive_brightness=additive_brightness)
    steps = steps.gather(1, blends[:, :, None].expand(-1, -1, 4))
    first = torch.arange(3, device=x.device) < is_hue.argmax(dim=1)[:, None]
    neutral = (torch.arange(4, device=x.device) == 0).to(x.dtype)
    before = torch.where(first[:, :, None], steps, neutral)
    after = torch.where(first[:, :, None], neutral, steps)
    x = x.clone()
    for step in before.unbind(1):
        _update_(x, _blend_, step, neutral)
    _update_(x, _turn_, factors[:, HUE], x.new_zeros(()))
    for step in after.unbind(1):
        _update_(x, _blend_, step, neutral)
    return x


def to_gray(x: Tensor, chosen: Tensor) -> Tensor:
    """Replaces the images of the chosen (N,) by their luma, in all three channels."""
    return torch.lerp(x, _luma(x)[:, None], chosen.to(x.dtype)[:, None, None, None])


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur with reflected borders, as products with one banded matrix per axis and sample.

    Args:
        sigma: (N,) in pixels; 0 changes nothing.
        kernel: odd width of the kernel in pixels, common to all samples.
    """
    x = x.clone()
    _update_(x, lambda part, s: _blur(part, s, kernel), sigma, sigma.new_zeros(()))
    return x


def solarize(x: Tensor, threshold: float, chosen: Tensor) -> Tensor:
    """Inverts pixels that are at least `threshold` in the images of the chosen (N,)."""
    limit = torch.where(chosen, threshold, torch.inf)[:, None, None, None]
    return torch.where(x >= limit, 1 - x, x)


def crop_resize(
    image: np.ndarray, box: Sequence[int], flip: bool, out: np.ndarray, interpolation: Interpolation
) -> None:
    """Writes a crop of one image to `out`, resized with antialiasing and mirrored.

    Rows and columns are resized in turn, in integers as PIL does it. Bicubic weights overshoot, so
    at hard edges near black and white a few pixels would differ by some levels from arithmetic in
    floats; in views of up to 64 pixels, where that shows and costs microseconds, floats are used.

    Args:
        image: (H, W, 3) uint8, contiguous; it may be read-only.
        box: (4,) top, left, height, width.
        out: (height, width, 3) uint8, contiguous.
    """
    bicubic = interpolation == "bicubic"
    small = bicubic and max(out.shape[:2]) <= EXACT
    if _crop and not small:
        top, left, height, width = box
        _crop.crop_resize(image, out, top, left, height, width, flip, bicubic)
    else:
        crop_resize_torch(image, box, flip, out, interpolation, floats=small)


def crop_resize_torch(
    image: np.ndarray,
    box: Sequence[int],
    flip: bool,
    out: np.ndarray,
    interpolation: Interpolation,
    floats: bool = False,
) -> None:
    """`crop_resize` in floats, or in integers where crop.c was not compiled."""
    top, left, height, width = box
    # from_numpy() would warn of memory that torch could not write to.
    source = torch.utils.dlpack.from_dlpack(image[top : top + height, left : left + width])
    target = torch.from_numpy(out)
    if floats:
        crop_resize_floats(source.permute(2, 0, 1), flip, target, interpolation)
        return
    target = target.permute(2, 0, 1)[None]
    source = source.permute(2, 0, 1)[None]
    _RESIZE[interpolation].out(source, out.shape[:2], False, None, None, out=target)
    if flip:
        target.copy_(target.flip(3))


def crop_resize_floats(crop: Tensor, flip: bool, out: Tensor, interpolation: Interpolation) -> None:
    """Resizes one crop with antialiasing, rounded once, and mirrors it; on any device.

    Args:
        crop: (3, h, w) uint8.
        out: (height, width, 3) uint8; written to.
    """
    resized = _RESIZE[interpolation](crop[None].float(), out.shape[:2], False)[0]
    resized = resized.flip(2) if flip else resized
    out.copy_(resized.round_().clamp_(0, 255).permute(1, 2, 0))


def crop_resize_batch(
    images: Tensor, box: Tensor, flip: Tensor, size: tuple[int, int], interpolation: Interpolation
) -> Tensor:
    """Crops of images that have one size, resized with antialiasing and mirrored, on any device.

    Each sample has a matrix per axis; everything is rounded once, at the end.

    Args:
        images: (N, H, W, C) uint8.
        box: (N, 4) top, left, height, width.
        flip: (N,) bool.
        size: height and width of the crops.

    Returns:
        (N, height, width, C) uint8.
    """
    top, left, height, width = box.to(torch.float32).unbind(1)
    rows = _resize_matrix(top, height, images.shape[1], size[0], interpolation)
    columns = _resize_matrix(left, width, images.shape[2], size[1], interpolation)
    columns = torch.lerp(columns, columns.flip(1), flip.to(columns.dtype)[:, None, None])
    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    x = rows[:, None] @ (x.flatten(1, 2) @ columns.mT).unflatten(1, (images.shape[3], -1))
    return x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _resize_matrix(
    start: Tensor, length: Tensor, source: int, target: int, interpolation: Interpolation
) -> Tensor:
    """(N, target, source) weights of pixels from `start` on; the filter widens when it shrinks."""
    scale = length[:, None] / target
    pixels = torch.arange(source, device=start.device) + 0.5
    centre = start[:, None] + (torch.arange(target, device=start.device) + 0.5) * scale
    away = (pixels - centre[:, :, None]).div_(scale.clamp(min=1)[:, :, None]).abs_()
    if interpolation == "bilinear":
        weight = away.neg_().add_(1).clamp_(min=0)
    else:
        # Keys' cubic with a = -0.5: one polynomial up to 2, and what it lacks up to 1.
        near = away.clamp(max=1)
        weight = away.clamp_(max=2).mul(-0.5).add_(2.5).mul_(away).sub_(4).mul_(away).add_(2)
        weight += near.mul(2).sub_(5).mul_(near).add_(4).mul_(near).sub_(1)
    inside = (pixels > start[:, None]) & (pixels < (start + length)[:, None])
    weight *= inside[:, None]
    return weight.div_(weight.sum(2, keepdim=True))


def _luma(x: Tensor) -> Tensor:
    """(N, H, W)"""
    return (0.2989 * x[:, 0]).add_(x[:, 1], alpha=0.587).add_(x[:, 2], alpha=0.114)


def _blend_(x: Tensor, coefficients: Tensor) -> Tensor:
    """Clipped sum of image, mean of the grey image, grey image and 1, by coefficients (N, 4)."""
    image, mean, gray, constant = coefficients[:, :, None, None].unbind(1)
    luma = _luma(x)
    shift = luma.mean((1, 2), keepdim=True) * mean + constant
    return x.mul_(image[:, None]).add_(luma.mul_(gray).add_(shift)[:, None]).clamp_(0, 1)


def _turn_(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue, (N,) in circles.

    A channel of an HSV colour is value - chroma * w, and w is a trapezium of the distance on the
    circle between the hue and that of the channel: the way back needs no case distinction.
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(red, green)
    value = torch.maximum(value, blue, out=value)
    chroma = torch.minimum(red, green)
    chroma = torch.minimum(chroma, blue, out=chroma)
    torch.sub(value, chroma, out=chroma)
    r, g, b = x.sub_(value[:, None]).div_(chroma.clamp(min=1e-20).neg_()[:, None]).unbind(1)
    # Which channel is largest, without torch.where: it is twenty times slower on CPUs. The hue is
    # counted in sixths of the circle from red.
    hue = torch.lerp((r - b).add_(2), (g - r).add_(4), g.sign())
    hue = torch.lerp(b - g, hue, r.sign()).add_(6 * turn[:, None, None])
    hue.sub_((hue / 6).round_().mul_(6))
    channels = torch.arange(0, 6, 2, device=x.device).view(3, 1, 1)
    torch.sub(hue[:, None], channels, out=x)
    w = x.abs_().sub_(3).abs_().neg_().add_(2).clamp_(0, 1)
    return w.mul_(chroma.neg_()[:, None]).add_(value[:, None])


def _coefficients(factors: Tensor, *, additive_brightness: bool = False) -> Tensor:
    """(N, 3, 4) coefficients of brightness, contrast and saturation for factors (N, 3) or (N,)."""
    f = factors.view(len(factors), -1).expand(-1, 3)
    table = f.new_zeros(len(f), 3, 4)
    table[:, :, 0] = f
    table[:, 1, 1] = 1 - f[:, 1]
    table[:, 2, 2] = 1 - f[:, 2]
    if additive_brightness:
        table[:, 0, 0], table[:, 0, 3] = 1, f[:, 0]
    return table


def _update_(
    x: Tensor, change: Callable[[Tensor, Tensor], Tensor], parameter: Tensor, neutral: Tensor
) -> None:
    """Changes those images whose parameter is not `neutral`, which changes nothing.

    A GPU computes all of them, since to learn how many there are would mean to wait for it.
    """
    if x.is_cuda:
        x.copy_(change(x, parameter))
        return
    rows = (parameter != neutral).view(len(x), -1).any(1).nonzero()[:, 0]
    if len(rows):
        x.index_copy_(0, rows, change(x.index_select(0, rows), parameter[rows]))


def _blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    down, across = (_blur_matrix(sigma, size, kernel) for size in x.shape[2:])
    return down[:, None] @ x @ across[:, None].mT


def _blur_matrix(sigma: Tensor, size: int, kernel: int) -> Tensor:
    """(N, size, size), with what lies beyond a border folded back into it."""
    offset = torch.arange(kernel, device=sigma.device) - kernel // 2
    weight = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    weight = weight / weight.sum(1, keepdim=True)
    source = torch.arange(size, device=sigma.device)[:, None] + offset
    source = (size - 1) - ((size - 1) - source.abs()).abs()
    matrix = sigma.new_zeros(len(sigma), size, size)
    shape = (len(sigma), size, kernel)
    return matrix.scatter_add_(2, source.expand(shape), weight[:, None].expand(shape))
