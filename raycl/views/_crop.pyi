"""crop.c, where it was compiled."""

import numpy as np

def crop_resize(
    image: np.ndarray,
    out: np.ndarray,
    top: int,
    left: int,
    height: int,
    width: int,
    flip: bool,
    bicubic: bool,
) -> None: ...
