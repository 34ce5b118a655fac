"""Views of images: cropped on the host, coloured and blurred in batches on the device.

A view is planned before it is drawn: `plan` turns (seed, epoch, id, view) into numbers, `cut` makes
the crop of one decoded image, `render` does the rest for a whole batch. Only the last two import
torch, so that a recipe can be validated without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from raycl.views.random import uniforms

if TYPE_CHECKING:
    from torch import Tensor

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Jitter = Annotated[float, Field(ge=0, le=2)]
Change = Literal["color", "gray", "blur", "solarize"]

TRIES = 10  # of a random crop, before it falls back to the middle
# Each use of randomness has its own columns: switching one off leaves the others as they are.
AREA, RATIO, PLACE, FLIP, COLOR, ORDER, FACTORS, GRAY, BLUR, SIGMA, SOLARIZE, END = np.cumsum(
    [0, TRIES, TRIES, 2, 1, 1, 4, 4, 1, 1, 1, 1]
).tolist()


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Crop(_Part):
    """Random resized crop: area as a fraction of the image's, aspect ratio as width over height."""

    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)

    @model_validator(mode="after")
    def _ascending(self) -> Crop:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is (lowest, highest), ({low}, {high}) was given")
        return self


class Color(_Part):
    """Jitter of four properties in random order, clipped to [0, 1] after each (SimCLR, appendix A).

    Factors are drawn from [max(0, 1 - b), 1 + b] with b = strength * brightness, and so on; the hue
    turns by a fraction of the circle in [-h, h]. Additive brightness adds a number in [-b, b], as
    the first version of the published code does.
    """

    p: Probability = 0.8
    strength: float = Field(1.0, ge=0, le=2)
    brightness: Jitter = 0.8
    contrast: Jitter = 0.8
    saturation: Jitter = 0.8
    hue: float = Field(0.2, ge=0, le=0.5)
    additive_brightness: bool = False

    @model_validator(mode="after")
    def _half_circle(self) -> Color:
        if self.strength * self.hue > 0.5:
            raise ValueError(
                f"strength * hue is {self.strength * self.hue:g}, and at most 0.5 (half the circle)"
            )
        return self


class Blur(_Part):
    """Gaussian blur; `kernel` is its width as a fraction of the image's side, made odd."""

    p: Probability = 0.5
    sigma: tuple[Positive, Positive] = (0.1, 2.0)
    kernel: Fraction = 0.1

    @model_validator(mode="after")
    def _ascending(self) -> Blur:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"sigma is (lowest, highest), {self.sigma} was given")
        return self


class Solarize(_Part):
    """Inverts what is at least as bright as the threshold (BYOL, appendix B)."""

    p: Probability = 0.2
    threshold: Probability = 0.5


class ImageView(_Part):
    """One rendering of an image as a float tensor (3, size, size).

    Attributes:
        field: the sample's field that holds the image.
        size: side of the view in pixels.
        interpolation: of the crop, always antialiased.
        crop: random crop; None takes the central square: 0.875 of the shorter side where the view
            is larger than 64 pixels (the usual resize to 256 and crop of 224), else all of it.
        whole: without a crop, the whole image is squeezed to the square.
        flip: probability of a mirror image.
        gray: probability of losing all colour.
        order: in which the four changes of colour are made.
        mean, std: what the channels are normalised with; None leaves them in [0, 1].
        of: another view of the stream, whose pixels the method draws this one from on the device,
            once it has changed them (`draw`); the loader cuts only the other one.
    """

    field: str = "image"
    of: str | None = None
    size: int = Field(224, ge=8, le=1024)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop: Crop | None = None
    whole: bool = False
    flip: Probability = 0.5
    color: Color | None = None
    gray: Probability = 0.0
    blur: Blur | None = None
    solarize: Solarize | None = None
    order: tuple[Change, Change, Change, Change] = ("color", "gray", "blur", "solarize")
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None

    @model_validator(mode="after")
    def _both(self) -> ImageView:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both or neither")
        return self

    @model_validator(mode="after")
    def _each_once(self) -> ImageView:
        if len(set(self.order)) < len(self.order):
            raise ValueError(f"order names each change once, {', '.join(self.order)} was given")
        return self

    @model_validator(mode="after")
    def _one_part(self) -> ImageView:
        if self.crop and self.whole:
            raise ValueError("crop shows a part and whole all of an image: give one of them")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's crop, uint8."""
        return (self.size, self.size, 3)

    @property
    def central(self) -> float:
        """Side of the central square, as a fraction of the image's shorter side."""
        return 0.875 if self.size > 64 else 1.0

    def evaluation(self, size: int | None = None) -> ImageView:
        """The deterministic view of the same normalisation, for measuring an encoder."""
        kept = self.model_dump(include={"field", "whole", "interpolation", "mean", "std"})
        return ImageView(**kept, size=size or self.size, flip=0.0)

    def plan(
        self,
        seed: int,
        epoch: int,
        ids: np.ndarray,
        view: int,
        heights: np.ndarray,
        widths: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Everything random about this view of N samples, a function of the arguments alone.

        Args:
            ids: (N,) sample ids.
            view: number of the view among those of the method.
            heights, widths: (N,) size of each decoded image.

        Returns:
            "box" (N, 4) int64: top, left, height, width in pixels of the decoded image; "flip" (N,)
            bool. Where the view has them: "order" (N, 4) int64 and "factors" (N, 4) float32 of
            brightness, contrast, saturation and hue; "gray" (N,) bool; "sigma" (N,) float32 in
            pixels, 0 for no blur; "solarize" (N,) bool.
        """
        draw = uniforms(seed, epoch, ids, view, END)
        heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
        if self.crop:
            box = _random_boxes(self.crop, draw[:, AREA:FLIP], heights, widths)
        elif self.whole:
            box = _centred(heights, widths, heights, widths)
        else:
            box = _central_boxes(self.central, heights, widths)
        plan = {"box": box, "flip": draw[:, FLIP] < self.flip}
        if self.color:
            plan["order"] = draw[:, ORDER:FACTORS].argsort(axis=1, kind="stable")
            plan["factors"] = _factors(self.color, draw[:, COLOR], draw[:, FACTORS:GRAY])
        if self.gray:
            plan["gray"] = draw[:, GRAY] < self.gray
        if self.blur:
            low, high = self.blur.sigma
            sigma = low + (high - low) * draw[:, SIGMA]
            plan["sigma"] = np.where(draw[:, BLUR] < self.blur.p, sigma, 0).astype(np.float32)
        if self.solarize:
            plan["solarize"] = draw[:, SOLARIZE] < self.solarize.p
        return plan

    def cut(self, image: np.ndarray, box: Sequence[int], flip: bool, out: np.ndarray) -> None:
        """Crops, resizes and mirrors one image; resizing releases the GIL.

        Args:
            image: (H, W, 3) uint8; it may be read-only.
            box: (4,) top, left, height, width.
            out: (size, size, 3) uint8, contiguous; written to.
        """
        from raycl.views import ops

        ops.crop_resize(image, box, flip, out, self.interpolation)

    def cut_on_device(self, image: Tensor, box: Sequence[int], flip: bool, out: Tensor) -> None:
        """`cut` on the image's own device; the two differ by some grey levels at hard edges.

        Args:
            image: (3, H, W) uint8.
            box: (4,) top, left, height, width.
            out: (size, size, 3) uint8; written to.
        """
        from raycl.views import ops

        top, left, height, width = box
        crop = image[:, top : top + height, left : left + width]
        ops.crop_resize_floats(crop, flip, out, self.interpolation)

    def cut_batch(self, images: Tensor, box: Tensor, flip: Tensor) -> Tensor:
        """Cuts images of one size, (N, H, W, C) uint8, at once and on their device.

        Faster than `cut` for images of some 32 pixels. The two may differ by a few grey levels at
        hard edges, so what decides between them has to be a whole data set, not a batch.

        Returns:
            (N, size, size, C) uint8.
        """
        from raycl.views import ops

        size = (self.size, self.size)
        return ops.crop_resize_batch(images, box, flip, size, self.interpolation)

    def render(self, pixels: Tensor, plan: Mapping[str, Tensor]) -> Tensor:
        """Colours, blurs and normalises a batch of crops on the device where they are.

        Args:
            pixels: (N, 3, size, size) uint8, left as they are.
            plan: what `plan` returned, as tensors on the same device.

        Returns:
            (N, 3, size, size) float32, in [0, 1] before normalisation.
        """
        from raycl.views import ops

        x = ops.to_float(pixels)
        for change in self.order:
            if change == "color" and self.color:
                additive = self.color.additive_brightness
                x = ops.color_jitter(
                    x, plan["order"], plan["factors"], additive_brightness=additive
                )
            elif change == "gray" and self.gray:
                x = ops.to_gray(x, plan["gray"])
            elif change == "blur" and self.blur:
                radius = int(round(self.blur.kernel * self.size, 6)) // 2
                x = ops.gaussian_blur(x, plan["sigma"], 2 * radius + 1)
            elif change == "solarize" and self.solarize:
                x = ops.solarize(x, self.solarize.threshold, plan["solarize"])
        if self.mean and self.std:
            x = ops.normalize(x, self.mean, self.std)
        return x


class MaskView(_Part):
    """A mask (size, size) uint8, cut and mirrored as another view's image; nearest pixels.

    Attributes:
        field: the sample's field that holds the mask, an image file with one grey level per pixel:
            a class, or how much a pixel stands out.
        follows: name of the view.
        size: side of the mask in pixels.
    """

    field: str = "mask"
    follows: str
    size: int = Field(224, ge=1, le=1024)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's crop, uint8."""
        return (self.size, self.size)

    def cut(self, mask: np.ndarray, box: Sequence[int], flip: bool, out: np.ndarray) -> None:
        """Crops, resizes and mirrors one mask (H, W); see `ImageView.cut`."""
        top, left, height, width = box
        middles = (np.arange(self.size) + 0.5) / self.size
        rows = top + (middles * height).astype(np.int64)
        columns = left + (middles * width).astype(np.int64)
        out[...] = mask[rows[:, None], columns[::-1] if flip else columns]


def _random_boxes(
    crop: Crop, draw: np.ndarray, heights: np.ndarray, widths: np.ndarray
) -> np.ndarray:
    """Boxes (N, 4) of torchvision's RandomResizedCrop: the first of ten tries that fits."""
    area = (heights * widths)[:, None] * _between(*crop.scale, draw[:, :TRIES])
    low, high = crop.ratio
    ratio = np.exp(_between(np.log(low), np.log(high), draw[:, TRIES : 2 * TRIES]))
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width > 0) & (width <= widths[:, None]) & (height > 0) & (height <= heights[:, None])
    first = fits.argmax(axis=1)[:, None]
    height, width = (np.take_along_axis(side, first, axis=1)[:, 0] for side in (height, width))
    top, left = (
        np.minimum((draw[:, 2 * TRIES + i] * (room + 1)).astype(np.int64), room)
        for i, room in enumerate((heights - height, widths - width))
    )
    lowered = np.minimum(heights, np.rint(widths / low).astype(np.int64))
    narrowed = np.minimum(widths, np.rint(heights * high).astype(np.int64))
    middle = _centred(lowered, narrowed, heights, widths)
    return np.where(fits.any(axis=1)[:, None], np.stack([top, left, height, width], 1), middle)


def _central_boxes(fraction: float, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    side = np.maximum(np.rint(fraction * np.minimum(heights, widths)).astype(np.int64), 1)
    return _centred(side, side, heights, widths)


def _centred(
    height: np.ndarray, width: np.ndarray, heights: np.ndarray, widths: np.ndarray
) -> np.ndarray:
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], 1)


def _factors(color: Color, chosen: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """(N, 4) float32; a sample that is not chosen gets factors that change nothing."""
    ranges = color.strength * np.array([color.brightness, color.contrast, color.saturation])
    low, high = np.append(np.maximum(0, 1 - ranges), 0.0), np.append(1 + ranges, 0.0)
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    low[3], high[3] = -color.strength * color.hue, color.strength * color.hue
    if color.additive_brightness:
        low[0], high[0], neutral[0] = -ranges[0], ranges[0], 0
    factors = np.where(chosen[:, None] < color.p, _between(low, high, draw), neutral)
    return factors.astype(np.float32)


def _between(low: float | np.ndarray, high: float | np.ndarray, draw: np.ndarray) -> np.ndarray:
    return low + (high - low) * draw
