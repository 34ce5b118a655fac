from __future__ import annotations

import numpy as np
import pytest

from raycl.views.sheet import contact_sheet

RED = np.full((8, 8, 3), [255, 0, 0], np.uint8)
WIDE_BLUE = np.full((10, 200, 3), [0, 0, 255], np.uint8)


def count(sheet: np.ndarray, color: list[int]) -> int:
    return int((sheet == color).all(-1).sum())


def test_every_image_is_fitted_into_its_cell() -> None:
    sheet = np.asarray(contact_sheet([[RED, WIDE_BLUE], [RED]], cell=40))
    assert sheet.shape == (2 * 44 + 4, 2 * 44 + 4, 3)
    assert count(sheet, [255, 0, 0]) == 2 * 40 * 40
    assert count(sheet, [0, 0, 255]) == 40 * 2  # keeps its aspect ratio
    assert (sheet[4:44, 4:44] == [255, 0, 0]).all()
    assert (sheet[48:, 48:] == 255).all()


def test_labels_stand_left_of_their_rows() -> None:
    plain = np.asarray(contact_sheet([[RED], [RED]], cell=40))
    sheet = np.asarray(contact_sheet([[RED], [RED]], ["a long label", ""], cell=40))
    assert sheet.shape[0] == plain.shape[0]
    margin = sheet.shape[1] - plain.shape[1]
    assert margin > 40
    assert (sheet[4:44, :margin] < 128).any() and (sheet[48:, :margin] == 255).all()
    np.testing.assert_array_equal(sheet[:, margin + 4 :], plain[:, 4:])


@pytest.mark.parametrize(("rows", "labels"), [([], None), ([[]], None), ([[RED]], ["a", "b"])])
def test_nonsense_is_refused(rows: list[list[np.ndarray]], labels: list[str] | None) -> None:
    with pytest.raises(ValueError, match=r"at least one image|2 labels"):
        contact_sheet(rows, labels)
