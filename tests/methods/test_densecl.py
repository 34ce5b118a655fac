"""DenseCL as published, and the share of matches that the crops confirm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from raycl.methods import Step
from raycl.methods.densecl import DenseCL, Heads, correctness, matches
from tests.methods.maps import Given, batch_of, fill

Golden = Callable[[str], dict[str, np.ndarray]]
PARTS = {"image": "mlp", "cells": "mlp2"}


def heads(found: dict[str, np.ndarray], prefix: str = "") -> Heads:
    made = Heads(12, 16, 8)
    names = {
        f"{part}.{i}.{kind}": f"{prefix}{published}_{i}_{kind}"
        for part, published in PARTS.items()
        for i in (0, 2)
        for kind in ("weight", "bias")
    }
    fill(made, {ours: found[theirs] for ours, theirs in names.items()})
    return made.double()


def test_heads_are_those_of_the_published_code(golden: Golden) -> None:
    found = golden("densecl_neck")
    outputs = heads(found)(torch.from_numpy(found["backbone_feat"]).double())
    for ours, theirs in {"global": "avgpooled_x", "dense": "x", "pooled": "avgpooled_x2"}.items():
        np.testing.assert_allclose(outputs[ours].detach(), found[theirs], rtol=1e-9, atol=1e-12)


def given(found: dict[str, np.ndarray], **changes: object) -> DenseCL:
    settings = {
        "queue": found["queue_init"].shape[1],
        "key_groups": 1,
        "warmup_steps": 0,
        "momentum": float(found["ema_momentum"]),
        "temperature": float(found["temperature"]),
        "dense_weight": float(found["loss_lambda"]),
        "projector": {"hidden": 16, "dim": 8},
        "encoder": {"depth": 18, "width": 8},
    }
    method = DenseCL(DenseCL.Config.model_validate(settings | changes))
    method.encoder, method.key_encoder = Given(12), Given(12)
    method.heads, method.key_heads = heads(found, "q_"), heads(found, "k_").requires_grad_(False)
    method.double()
    method.queue.rows.copy_(torch.from_numpy(found["queue_init"].T))
    method.dense_queue.rows.copy_(torch.from_numpy(found["queue2_init"].T))
    return method


def test_steps_are_those_of_the_published_code(golden: Golden) -> None:
    found = golden("densecl_loss")
    method = given(found)
    for index, total in enumerate(found["loss_total"]):
        batch = batch_of(found["feat_q"][index], found["feat_k"][index])
        for output in method.training_step(batch, Step(index, 0, 5)):
            assert output.loss.item() == pytest.approx(total, rel=1e-9)
            single, dense = (output.metrics[f"loss.{name}"].item() for name in ("global", "dense"))
            assert single == pytest.approx(found["loss_single"][index], rel=1e-9)
            assert dense == pytest.approx(found["loss_dense"][index], rel=1e-9)
            if index == 0:
                output.loss.backward()
                for ours, theirs in PARTS.items():
                    gradient = method.heads.get_submodule(ours)[2].weight.grad  # type: ignore[index]
                    expected = found[f"grad0_{theirs}_2_weight"]
                    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-12)
        maps = (batch[name].flatten(2) for name in ("view1", "view2"))
        np.testing.assert_array_equal(matches(*maps), found["match_index"][index])
        np.testing.assert_allclose(method.queue.rows.T, found["queue_after"][index], rtol=1e-9)
        after = found["queue2_after"][index]
        np.testing.assert_allclose(method.dense_queue.rows.T, after, rtol=1e-9)


def test_the_dense_loss_waits_for_the_warm_up(golden: Golden) -> None:
    found = golden("densecl_loss")
    method = given(found, warmup_steps=1)
    losses = []
    for index in (0, 1):
        batch = batch_of(found["feat_q"][index], found["feat_k"][index])
        losses += [output.loss.item() for output in method.training_step(batch, Step(index, 0, 5))]
    assert losses == pytest.approx([found["loss_single"][0], found["loss_total"][1]], rel=1e-9)
    assert DenseCL.Config().warmup_steps == 10_000


def test_cells_match_themselves() -> None:
    maps = torch.randn(3, 16, 12)
    assert (matches(maps, maps) == torch.arange(12)).all()


def test_matches_are_judged_by_where_the_crops_lie() -> None:
    """The second view is the right half of the first one, mirrored; 4 x 4 cells."""
    batch = {
        "view1.box": torch.tensor([[10, 20, 40, 80]]),
        "view1.flip": torch.tensor([False]),
        "view2.box": torch.tensor([[10, 60, 40, 40]]),
        "view2.flip": torch.tensor([True]),
    }
    cells = torch.arange(16).view(4, 4)
    # Columns 2 and 3 of the first view are seen, at twice the width and mirrored.
    right = torch.stack([torch.full((4,), 0)] * 2 + [cells[:, 3], cells[:, 0]], 1)
    assert correctness(right.view(1, 16), batch, torch.Size((4, 4))) == 1
    # The middle of such a cell lies between two of the second view; two cells off is wrong.
    wrong = torch.stack([torch.full((4,), 0)] * 2 + [cells[:, 0], cells[:, 0]], 1)
    assert correctness(wrong.view(1, 16), batch, torch.Size((4, 4))) == 0.5
    apart = batch | {"view2.box": torch.tensor([[200, 200, 40, 40]])}
    assert correctness(right.view(1, 16), apart, torch.Size((4, 4))) == 0
