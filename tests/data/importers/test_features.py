"""Features with class embeddings: all layouts, the real splits, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from scipy.io import savemat

from raycl.data.encode import Storage
from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
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


TABLE = """class,unseen,warm,round
green, 0,0.5,1
red,0,1,0
violet,1,0.2,0.1

blue,1,0,1e-1
"""


def embedded(folder: Path, classes: list[str] | None = None, columns: tuple[str, ...] = ()) -> Path:
    """As `raycl embed` leaves it: 24 samples of red, green and blue in turn, in files of ten."""
    folder.mkdir()
    about = {"data": {"place": "/photos", "samples": 24}, "classes": classes}
    (folder / "_embedding.json").write_text(json.dumps(about))
    ids = np.arange(24)
    features = np.repeat(ids, 6).astype(np.float32)
    rows: dict[str, Any] = {
        "id": ids,
        "features": pa.FixedSizeListArray.from_arrays(pa.array(features), 6),
        "label": ids % 3,
    }
    table = pa.table({name: rows[name] for name in columns or rows})
    for part, start in enumerate((0, 10, 20)):
        parquet.write_table(table.slice(start, 10), folder / f"part-0000{part}.parquet")
    return folder


def tabled(path: Path, text: str = TABLE) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_what_embed_wrote_is_split_by_a_table_of_classes(tmp_path: Path) -> None:
    """Classes with images keep their labels; every fifth sample of a seen one is for testing."""
    source = embedded(tmp_path / "e", ["red", "green", "blue"])
    import_dataset("features", source, tmp_path / "out", classes=tabled(tmp_path / "t.csv"))
    train, test, classes = (Shards(tmp_path / "out" / n) for n in ("train", "test", "classes"))
    held_out, unseen = [12, 13], list(range(2, 24, 3))
    rows = {"train": [i for i in range(24) if i not in held_out + unseen]}
    rows["test"] = held_out + unseen
    for name, shards in (("train", train), ("test", test)):
        assert shards.classes == ["red", "green", "blue", "violet"]
        assert shards.column("label").tolist() == [i % 3 for i in rows[name]]
        found = [shards.read(i)["features"].tolist() for i in range(len(shards))]
        assert found == [[float(i)] * 6 for i in rows[name]]
    values = [classes.read(i)["features"] for i in range(4)]
    expected = np.array([[1, 0], [0.5, 1], [0, 0.1], [0.2, 0.1]], np.float32)
    assert (np.stack(values) == expected).all()
    assert classes.column("label").tolist() == [0, 1, 2, 3]


def test_classes_without_names_are_their_numbers(tmp_path: Path) -> None:
    table = tabled(tmp_path / "t.csv", "class,unseen,warm\n2,1,0.5\n0,0,1\n1,0,0\n")
    import_dataset("features", embedded(tmp_path / "e"), tmp_path / "out", classes=table)
    classes = Shards(tmp_path / "out" / "classes")
    assert classes.classes == ["0", "1", "2"]
    assert [float(classes.read(i)["features"][0]) for i in range(3)] == [1, 0, 0.5]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a head, and a line for each class are needed"),
        ("red,0,1\n", "a head, and a line for each class are needed"),
        (TABLE.replace("green, 0", "green,no"), "line 2: the name of a class, 1 if it is unseen"),
        (TABLE.replace("0.2", "warm"), "line 4: the name of a class, 1 if it is unseen"),
        (TABLE.replace("1e-1", "nan"), "line 6: finite numbers are needed"),
        (TABLE.replace("green, 0,0.5,1", "green,0"), "line 2: finite numbers are needed"),
        (TABLE.replace("1,0\n", "1,0,0\n"), "line 3: has 3 numbers, and the lines before it 2"),
        (TABLE.replace("red", "green"), "line 3: the class 'green' stands in line 2 already"),
        (TABLE.replace("red", "Red"), "has no line of the class 'red' of /photos"),
        (TABLE.replace("blue,1", "blue,0"), "none of the classes with images are unseen"),
        (TABLE.replace("red,0", "red,1").replace("green, 0", "green,1"), "all of the classes with"),
    ],
)
def test_a_mistake_in_the_table_is_named_by_its_line(tmp_path: Path, text: str, told: str) -> None:
    table, source = (
        tabled(tmp_path / "t.csv", text),
        embedded(tmp_path / "e", ["red", "green", "blue"]),
    )
    with pytest.raises(RayclError, match=rf"^{table}: .*{told}"):
        import_dataset("features", source, tmp_path / "out", classes=table)
    assert not (tmp_path / "out").exists()


def test_an_embedding_that_is_not_finished(tmp_path: Path) -> None:
    source, table = embedded(tmp_path / "e", ["red", "green", "blue"]), tabled(tmp_path / "t.csv")
    last = source / "part-00002.parquet"
    last.write_bytes(last.read_bytes()[:100])
    for told in (
        r"part-00002\.parquet: is not whole; run `raycl embed` again",
        "holds 20 of 24 samples; run `raycl embed` again, which goes on",
        "holds no features yet; run `raycl embed` again",
    ):
        with pytest.raises(RayclError, match=told):
            import_dataset("features", source, tmp_path / "out", classes=table)
        for part in source.glob("part-*") if told.startswith("holds") else [last]:
            part.unlink()


def test_samples_without_labels_are_of_no_class(tmp_path: Path) -> None:
    source = embedded(tmp_path / "e", columns=("id", "features"))
    table = tabled(tmp_path / "t.csv", "class,unseen,warm\n0,0,1\n1,0,0\n2,1,0.5\n")
    with pytest.raises(RayclError, match=r"part-00000\.parquet: its samples have no label"):
        import_dataset("features", source, tmp_path / "out", classes=table)


def test_labels_beyond_the_classes_are_told(tmp_path: Path) -> None:
    table = tabled(tmp_path / "t.csv", "class,unseen,warm\n0,0,1\n1,1,0\n")
    with pytest.raises(RayclError, match="labels run from 0 to 2, and 2 classes are known"):
        import_dataset("features", embedded(tmp_path / "e"), tmp_path / "out", classes=table)


def test_a_table_of_classes_belongs_to_what_embed_wrote(tmp_path: Path) -> None:
    table = tabled(tmp_path / "t.csv")
    for source, given in (
        (archive(tmp_path / "a.npz"), table),
        (bundle(tmp_path / "b"), table),
        (embedded(tmp_path / "e", ["red", "green", "blue"]), None),
    ):
        with pytest.raises(RayclError, match=r"with a table of its classes \(--classes FILE\.csv"):
            import_dataset("features", source, tmp_path / "out", classes=given)
    with pytest.raises(RayclError, match="import npz: classes is of features"):
        import_dataset("npz", tmp_path / "a.npz", tmp_path / "out", classes=table)
    source = tmp_path / "e"
    with pytest.raises(RayclError, match="/nowhere: not a readable table"):
        import_dataset("features", source, tmp_path / "out", classes="/nowhere")
