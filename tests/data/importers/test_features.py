"""Features with class embeddings: both layouts, the real splits, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from raycl.data.shards import Shards
from raycl.data.sink import Storage, import_dataset
from raycl.errors import RayclError

FEATURES = np.arange(60, dtype=np.float64).reshape(10, 6)
LABELS = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 2])
EMBEDDINGS = np.arange(12, dtype=np.float64).reshape(3, 4)
SEEN, SEEN_TEST, UNSEEN_TEST = [0, 1, 2, 3], [6, 7], [4, 5, 8, 9]


def bundle(folder: Path) -> Path:
    """As xlsa17 has it: samples and classes are columns, and counted from 1."""
    folder.mkdir()
    savemat(folder / "res101.mat", {"features": FEATURES.T, "labels": LABELS[:, None] + 1})
    names = np.empty((3, 1), object)
    names[:, 0] = ["red", "green", "blue"]
    rows = {"trainval": SEEN, "test_seen": SEEN_TEST, "test_unseen": UNSEEN_TEST}
    splits = {f"{name}_loc": np.array(part)[:, None] + 1 for name, part in rows.items()}
    savemat(folder / "att_splits.mat", {"att": EMBEDDINGS.T, "allclasses_names": names, **splits})
    return folder


def archive(path: Path, **changes: np.ndarray) -> Path:
    arrays = {
        "features": FEATURES,
        "labels": LABELS,
        "att": EMBEDDINGS,
        "class_names": np.array(["red", "green", "blue"]),
        "trainval_loc": np.array(SEEN),
        "test_seen_loc": np.array(SEEN_TEST),
        "test_unseen_loc": np.array(UNSEEN_TEST),
    }
    np.savez(path, **(arrays | changes))  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("kind", ["bundle", "archive"])
def test_samples_and_classes_are_stored(tmp_path: Path, kind: str) -> None:
    source = bundle(tmp_path / "b") if kind == "bundle" else archive(tmp_path / "a.npz")
    import_dataset("features", source, tmp_path / "out")
    for name, rows in (("train", SEEN), ("test", SEEN_TEST + UNSEEN_TEST)):
        shards = Shards(tmp_path / "out" / name)
        assert shards.classes == ["red", "green", "blue"]
        assert (shards.column("label") == LABELS[rows]).all()
        for i, row in enumerate(rows):
            assert (shards.read(i)["features"] == FEATURES[row]).all()
    classes = Shards(tmp_path / "out" / "classes")
    assert [classes.read(i)["features"].tolist() for i in range(3)] == EMBEDDINGS.tolist()


def test_the_flowers_of_the_benchmark(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    import_dataset("features", shared_data("gzsl") / "flo_classic256.npz", tmp_path / "out")
    train, test = (Shards(tmp_path / "out" / name) for name in ("train", "test"))
    seen, every = np.unique(train.column("label")), np.unique(test.column("label"))
    assert (len(train), len(test), len(seen), len(every)) == (5631, 1403 + 1155, 82, 102)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": LABELS[:5]}, "'features' are of 10 samples and 'labels' of 5"),
        ({"labels": LABELS + 1}, "'labels' run from 1 to 3, and 'att' has embeddings of 3 classes"),
        ({"test_seen_loc": np.array([12])}, "'test_seen_loc' and its like name row 12 of 10"),
    ],
)
def test_arrays_that_contradict_each_other(
    tmp_path: Path, changes: dict[str, np.ndarray], told: str
) -> None:
    with pytest.raises(RayclError, match=told):
        import_dataset("features", archive(tmp_path / "a.npz", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=FEATURES)
    with pytest.raises(RayclError, match="has no array 'att'; it has: features"):
        import_dataset("features", tmp_path / "a.npz", tmp_path / "out")
    folder = bundle(tmp_path / "b")
    (folder / "res101.mat").write_bytes(b"no such thing")
    with pytest.raises(RayclError, match=r"res101\.mat: not a readable \.mat file"):
        import_dataset("features", folder, tmp_path / "out")
    (folder / "res101.mat").unlink()
    with pytest.raises(RayclError, match=r"expected are res101\.mat \(features\)"):
        import_dataset("features", folder, tmp_path / "out")


def test_options_of_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RayclError, match="write_mode is for images"):
        storage = Storage(write_mode="jpg")
        import_dataset("features", archive(tmp_path / "a.npz"), tmp_path / "out", storage=storage)
