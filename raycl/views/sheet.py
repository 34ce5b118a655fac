"""Contact sheets: many small pictures in one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4  # pixels between cells
FONT = 13  # pixels


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str] | None = None, cell: int = 96
) -> Image.Image:
    """Lays images out in rows, each fitted into a square cell.

    Args:
        rows: images (H, W, 3) uint8 of any sizes; rows may differ in length.
        labels: one per row, written to its left.
        cell: side of a cell in pixels.
    """
    if not any(rows):
        raise ValueError("a contact sheet needs at least one image")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"{len(labels)} labels were given for {len(rows)} rows")
    font = ImageFont.load_default(FONT)
    widest = max((font.getlength(label) for label in labels or ()), default=0.0)
    margin = GAP + (round(widest) + 2 * GAP if widest else 0)
    pitch = cell + GAP
    size = (margin + max(map(len, rows)) * pitch, GAP + len(rows) * pitch)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        top = GAP + i * pitch
        if labels is not None:
            draw.text((GAP, top + cell / 2), labels[i], fill="black", font=font, anchor="lm")
        for j, image in enumerate(row):
            picture = _fit(image, cell)
            left = margin + j * pitch + (cell - picture.width) // 2
            sheet.paste(picture, (left, top + (cell - picture.height) // 2))
    return sheet


def _fit(image: np.ndarray, cell: int) -> Image.Image:
    """Scaled to the cell with its aspect ratio; small images keep their pixels visible."""
    scale = cell / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(image)).resize((width, height), filter_)
