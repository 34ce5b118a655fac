"""What stands out of an image, without weights or training: the default of `raycl data saliency`.

Both cues are those of MB+ (Zhang et al., "Minimum Barrier Salient Object Detection at 80 FPS",
ICCV 2015): the minimum barrier distance to the image's border, and the Mahalanobis distances to the
colours of four border strips, in CIE Lab; and so is a centre prior. Ours are

- sweeps of whole rows and columns in place of the raster scan, whose every pixel waits for another;
- both cues saturated, so that petals count as much as a glaring middle, and multiplied, not added;
- a Gaussian and Otsu's threshold in place of the morphology and the fixed sigmoid at the end.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

SIDE = 128  # pixels of the longer side that are looked at
BORDER = 0.1  # width of a border strip, of the shorter side
FAR = 3.0  # deviations from a strip's mean colour that count half
NOISE = 2.0  # least deviation of a strip's colours, in units of Lab
SMOOTH = 0.01  # deviation of the Gaussian, of the longer side
CENTRE = 0.6  # deviation of the centre prior, of half a side
ROUNDS = 2  # of sweeps down, up, right and left
FLAT = 2.0  # barriers, in units of Lab, under which an image shows nothing

_SHARES = np.arange(256) / 255
_LINEAR = np.where(_SHARES <= 0.04045, _SHARES / 12.92, ((_SHARES + 0.055) / 1.055) ** 2.4)
# IEC 61966-2-1, each row divided by its sum: the white point D65.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_XYZ /= _XYZ.sum(1, keepdims=True)


def detect(image: np.ndarray) -> np.ndarray:
    """How salient every pixel is; what is above 127 is one object without holes, or nothing.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (H, W) uint8 of 16 levels; 0 throughout where the image is too flat or too small to tell.
    """
    height, width = image.shape[:2]
    scale = min(1, SIDE / max(height, width))
    sides = (max(1, round(width * scale)), max(1, round(height * scale)))
    colours = lab(np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR)))
    barriers = barrier_distance(colours)
    unreached = barriers / (barriers + max(otsu(barriers), FLAT))
    salient = ndimage.gaussian_filter(unreached * border_distance(colours), SMOOTH * max(sides))
    salient *= _centre(*salient.shape)
    top, threshold = salient.max(), otsu(salient)
    if barriers.max() < FLAT or top < 1e-6:
        return np.zeros((height, width), np.uint8)
    above = 128 + 127 * (salient - threshold) / (top - threshold)
    levels = np.where(salient > threshold, above, 127 * salient / threshold).astype(np.uint8)
    whole = np.array(Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR))
    return _one_object(whole) // 16 * 17  # as PNG a third of what 256 levels take


def lab(image: np.ndarray) -> np.ndarray:
    """CIE Lab (H, W, 3) float64 of sRGB (H, W, 3) uint8."""
    relative = _LINEAR[image] @ _XYZ.T
    roots = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    x, y, z = np.moveaxis(roots, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def barrier_distance(colours: np.ndarray) -> np.ndarray:
    """The minimum barrier distance of (H, W, C) to the border, summed over C, (H, W), nearly.

    A path's barrier is its highest minus its lowest value; the distance is the least barrier of
    all paths to the border.
    """
    values = np.moveaxis(colours, -1, 0).copy()
    distance = np.full_like(values, np.inf)
    distance[:, [0, -1]] = distance[:, :, [0, -1]] = 0
    high, low = values.copy(), values.copy()
    for _ in range(ROUNDS):
        for axis in (1, 2):
            v, d, h, m = (np.moveaxis(part, axis, 0) for part in (values, distance, high, low))
            for step in (1, -1):
                for at in range(1, len(v)) if step == 1 else range(len(v) - 2, -1, -1):
                    highest = np.maximum(h[at - step], v[at])
                    lowest = np.minimum(m[at - step], v[at])
                    nearer = highest - lowest < d[at]
                    for part, new in ((d, highest - lowest), (h, highest), (m, lowest)):
                        np.copyto(part[at], new, where=nearer)
    return np.asarray(distance.sum(0))


def border_distance(colours: np.ndarray) -> np.ndarray:
    """How unlike the border strips a pixel is: the sum over three of the four, 0 to 3, (H, W).

    The strip that is left out is the most unlike one: the object may touch it.
    """
    strip = max(1, round(BORDER * min(colours.shape[:2])))
    unlike = []
    for part in (colours[:strip], colours[-strip:], colours[:, :strip], colours[:, -strip:]):
        known = part.reshape(-1, 3)
        spread = np.cov(known.T, bias=True) + NOISE**2 * np.eye(3)
        off = colours - known.mean(0)
        squared = ((off @ np.linalg.inv(spread)) * off).sum(-1)
        saturated = squared / (squared + FAR**2)
        unlike.append(saturated / max(saturated.max(), 1e-9))
    return np.asarray(np.sum(unlike, 0) - np.max(unlike, 0))


def otsu(values: np.ndarray) -> float:
    """The threshold that parts values best into two groups."""
    counts, edges = np.histogram(values, 256)
    below = np.cumsum(counts)[:-1] / values.size
    sums = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    between = (sums[-1] / values.size * below - sums[:-1] / values.size) ** 2
    return float(edges[1:-1][np.argmax(between / np.maximum(below * (1 - below), 1e-12))])


def _centre(height: int, width: int) -> np.ndarray:
    rows, columns = (((np.arange(n) + 0.5) * 2 / n - 1) ** 2 for n in (height, width))
    return np.exp(-(rows[:, None] + columns) / (2 * CENTRE**2))


def _one_object(levels: np.ndarray) -> np.ndarray:
    """The largest part above 127 with its holes filled; what else was above it becomes 0."""
    parts, count = ndimage.label(levels > 127)
    if not count:
        return levels
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    grounds, _ = ndimage.label(np.pad(parts != largest, 1, constant_values=True))
    filled = grounds[1:-1, 1:-1] != grounds[0, 0]
    return np.where(filled, np.maximum(levels, 128), np.where(levels > 127, 0, levels))
