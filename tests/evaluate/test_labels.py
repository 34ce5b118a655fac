from __future__ import annotations

import numpy as np
import pytest
import torch

from raycl.errors import RayclError
from raycl.evaluate import few_labels, folds
from raycl.evaluate.labels import check_pair, share_of_labels


def uneven_labels() -> np.ndarray:
    return np.random.default_rng(3).permutation(np.repeat([0, 1, 4], [40, 25, 60]))


@pytest.mark.parametrize("per_class", [1, 10, 25])
def test_few_labels_draws_the_same_number_from_every_class(per_class: int) -> None:
    labels = uneven_labels()
    drawn = few_labels(labels, per_class, seed=0)
    assert np.array_equal(np.unique(drawn), drawn)
    classes, counts = np.unique(labels[drawn], return_counts=True)
    assert classes.tolist() == [0, 1, 4]
    assert counts.tolist() == [per_class] * 3


def test_few_labels_depends_on_the_seed_only_and_is_nested() -> None:
    labels = uneven_labels()
    drawn = few_labels(labels, 10, seed=5)
    assert np.array_equal(drawn, few_labels(torch.from_numpy(labels), 10, seed=5))
    assert not np.array_equal(drawn, few_labels(labels, 10, seed=6))
    assert set(few_labels(labels, 3, seed=5)) < set(drawn)


def test_few_labels_names_the_class_that_is_too_small() -> None:
    with pytest.raises(RayclError, match=r"class 1 has only 25 .* fewer than the 26 asked for"):
        few_labels(uneven_labels(), 26, seed=0)


@pytest.mark.parametrize("per_class", [0, -1])
def test_few_labels_refuses_a_count_below_one(per_class: int) -> None:
    with pytest.raises(RayclError, match="labels per class"):
        few_labels(uneven_labels(), per_class, seed=0)


@pytest.mark.parametrize("count", [2, 5, 10])
def test_folds_partition_and_are_stratified(count: int) -> None:
    labels = uneven_labels()
    inside = [fold for _, fold in folds(labels, count, seed=1)]
    assert np.array_equal(np.sort(np.concatenate(inside)), np.arange(len(labels)))
    sizes = [len(fold) for fold in inside]
    assert max(sizes) - min(sizes) <= 1
    for label in np.unique(labels):
        counts = [int((labels[fold] == label).sum()) for fold in inside]
        assert max(counts) - min(counts) <= 1


def test_folds_give_the_complement_and_depend_on_the_seed() -> None:
    labels = uneven_labels()
    for outside, inside in folds(labels, 4, seed=1):
        assert np.array_equal(np.sort(np.concatenate([outside, inside])), np.arange(len(labels)))
    first, again, other = (folds(labels, 4, seed=seed)[0][1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("count", [1, 126])
def test_folds_refuse_impossible_counts(count: int) -> None:
    with pytest.raises(RayclError, match="allowed are 2 to 125"):
        folds(uneven_labels(), count, seed=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.0, 1.0]), "one integer per sample"),
        (np.array([[0, 1]]), "one integer per sample"),
        (np.array([0, 1, -1]), "sample 2 has label -1"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(RayclError, match=message):
        few_labels(labels, 1, seed=0)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.ones(3, 2), None, "the training data has no labels"),
        (torch.ones(3, 2), torch.tensor([1, 1, 1]), "one class only .label 1"),
        (torch.ones(0, 2), torch.tensor([], dtype=torch.int64), "the training data is empty"),
        (torch.ones(4, 2), torch.tensor([0, 1, 1]), r"\(4, 2\) do not go with 3 labels"),
        (torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 1]), "first is row 1"),
    ],
)
def test_features_and_labels_that_cannot_be_scored_are_refused(
    features: torch.Tensor, labels: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(RayclError, match=message):
        check_pair(features, labels, "training")


def test_a_share_of_every_class_is_part_of_a_larger_one() -> None:
    labels = np.repeat([0, 1, 2], [100, 10, 3])
    tenth, half = (share_of_labels(labels, share, seed=1) for share in (0.1, 0.5))
    assert np.bincount(labels[tenth]).tolist() == [10, 1, 1]
    assert np.bincount(labels[half]).tolist() == [50, 5, 2]
    assert set(tenth) <= set(half)
    assert share_of_labels(labels, 1.0, seed=1).tolist() == list(range(113))
