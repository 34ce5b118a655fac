"""The compiled crop gives the bits of torch's, and reads and writes nothing beyond its images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycl.views import ops

_crop = pytest.importorskip(
    "raycl.views._crop", reason="raycl/views/crop.c was not compiled: no compiler, or no AVX2"
)

AT_THE_EDGE = """
import ctypes, mmap
import numpy as np
from raycl.views import _crop

PAGE, NOTHING = mmap.PAGESIZE, 0
libc = ctypes.CDLL(None, use_errno=True)

def fenced(size, at_end):
    # Memory with a page before and behind it that kills whoever touches it.
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        assert not libc.mprotect(ctypes.c_void_p(int(start + page * PAGE)), PAGE, NOTHING)
    first = PAGE + (pages * PAGE - size if at_end else 0)
    return np.frombuffer(memory, np.uint8, size, first)

random = np.random.default_rng(0)
for case in range(400):
    height, width = random.integers(1, 60, 2)
    rows, columns = random.integers(1, [height + 1, width + 1])
    size = tuple(random.integers(1, 40, 2))
    at_end, bicubic, flip = random.integers(0, 2, 3).astype(bool)
    image = fenced(height * width * 3, at_end).reshape(height, width, 3)
    image[:] = random.integers(0, 256, image.shape)
    out = fenced(size[0] * size[1] * 3, at_end).reshape(*size, 3)
    top, left = (height - rows, width - columns) if at_end else (0, 0)
    _crop.crop_resize(image, out, top, left, rows, columns, flip, bicubic)
print("whole")
"""


@st.composite
def crops(draw: st.DrawFn) -> tuple[np.ndarray, list[int], tuple[int, int]]:
    """An image, a box inside it and the size of the view."""
    height, width = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    rows, columns = draw(st.integers(1, height)), draw(st.integers(1, width))
    box = [draw(st.integers(0, height - rows)), draw(st.integers(0, width - columns))]
    image = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width, 3))
    if draw(st.booleans()):  # hard edges, where bicubic weights overshoot
        image = (image > 127) * 255
    size = draw(st.integers(1, 130)), draw(st.integers(1, 130))
    return image.astype(np.uint8), [*box, rows, columns], size


@given(crops(), st.booleans(), st.sampled_from(["bilinear", "bicubic"]))
@settings(max_examples=300, deadline=None)
def test_same_bits_as_torch(
    crop: tuple[np.ndarray, list[int], tuple[int, int]],
    flip: bool,
    interpolation: ops.Interpolation,
) -> None:
    image, box, size = crop
    expected, out = np.zeros((2, *size, 3), np.uint8)
    ops.crop_resize_torch(image, box, flip, expected, interpolation)
    _crop.crop_resize(image, out, *box, flip, interpolation == "bicubic")
    np.testing.assert_array_equal(out, expected)


def test_a_photograph_shrunk_much() -> None:
    image = np.random.default_rng(0).integers(0, 256, (900, 1400, 3), np.uint8)
    for interpolation in ("bilinear", "bicubic"):
        expected, out = np.zeros((2, 9, 70, 3), np.uint8)
        ops.crop_resize_torch(image, [0, 0, 900, 1400], True, expected, interpolation)
        _crop.crop_resize(image, out, 0, 0, 900, 1400, True, interpolation == "bicubic")
        np.testing.assert_array_equal(out, expected)


def test_nothing_beyond_the_images_is_touched() -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_EDGE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 0, 0, 4), (5, 0, 4, 4), (0, 2**31 - 1, 4, 4)])
def test_a_box_outside_the_image(box: tuple[int, ...]) -> None:
    image, out = np.zeros((8, 8, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="not inside an image of 8 x 8"):
        _crop.crop_resize(image, out, *box, False, False)


def test_other_arrays_are_refused() -> None:
    image, out = np.zeros((8, 8, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    for wrong in (image[..., :2].copy(), image.astype(np.int32), image[0]):
        with pytest.raises(ValueError, match="H, W, 3"):
            _crop.crop_resize(wrong, out, 0, 0, 8, 8, False, False)
    with pytest.raises(ValueError, match="contiguous"):
        _crop.crop_resize(image[:, ::2], out, 0, 0, 8, 4, False, False)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _crop.crop_resize(image, out, 0, 0, 8, 8, False, False)
