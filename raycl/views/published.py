"""Augmentations that several published systems share; a recipe can override every field."""

from __future__ import annotations

from raycl.views.image import Blur, Color, Crop, ImageView, Solarize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def moco_v2() -> dict[str, ImageView]:
    """Two views of MoCo v2 (arXiv 2003.04297, section 3), as DenseCL and SimSiam have them too."""
    view = ImageView(
        crop=Crop(scale=(0.2, 1.0)),
        color=Color(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        gray=0.2,
        blur=Blur(),
        mean=MEAN,
        std=STD,
    )
    return {"view1": view, "view2": view}


def byol() -> dict[str, ImageView]:
    """Two unlike views (arXiv 2006.07733, appendix B): the second seldom blurred, and solarised."""
    first = ImageView(
        crop=Crop(),
        color=Color(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
        gray=0.2,
        blur=Blur(p=1.0),
        mean=MEAN,
        std=STD,
    )
    return {
        "view1": first,
        "view2": first.model_copy(update={"blur": Blur(p=0.1), "solarize": Solarize()}),
    }


def multi_crop(
    large: dict[str, ImageView],
    small: int,
    size: int = 96,
    scale: tuple[float, float] = (0.05, 0.4),
) -> dict[str, ImageView]:
    """Two large views and some small ones, "small1", ..., augmented as the first (SwAV, DINO).

    Args:
        large: the two views of whole objects.
        small: how many small ones.
        size: their side in pixels.
        scale: of the image's area.
    """
    first = next(iter(large.values()))
    blur = first.blur and first.blur.model_copy(update={"p": 0.5})
    crop = first.model_copy(update={"size": size, "crop": Crop(scale=scale), "blur": blur})
    return large | {f"small{i + 1}": crop for i in range(small)}
