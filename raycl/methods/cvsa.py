"""CVSA: cross-view saliency alignment for fine-grained contrastive learning. A reconstruction.

Wu, Li, Zang, Li, arXiv 2106.15788. No code was published; certain from the paper are three things:
saliency regions are cropped and swapped between images to make a view, the usual loss pulls the two
views of a foreground together, and an alignment loss makes the network find it in both. How, is
ours, on BYOL:

    swap   view 2 shows the foreground of x in the surroundings of another image of the lane
    g2     = sum_p m2(p) F'2_p,  a1(p) = softmax_p(cos(F1_p, g2) / temperature)
    align  = -sum_p m1(p) log a1(p), and the same from view 2 to 1; F' is the target network's map
    loss   = BYOL + align_weight * (align1 + align2) / 2

m is the saliency mask of a view, pooled to the map's cells and of sum 1. Masks come with the data
(`raycl data saliency`, or a data set's own); how they were made decides whether a result is
unsupervised. `masks: wrong` is the control: every image has another's mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raycl.methods.base import Batch, Output, Step, Stream
from raycl.methods.byol import BYOL
from raycl.nn.backbones.encoder import last_map
from raycl.views.image import TRIES, Crop, ImageView, MaskView
from raycl.views.published import byol
from raycl.views.swap import swap, usable

KEPT = 0.2  # of the foreground, the least that a random crop shows where masks are used at all


class CVSA(BYOL):
    """BYOL with foreground swap and cross-view alignment; with neither it is BYOL."""

    paper = "arXiv 2106.15788"

    class Config(BYOL.Config):
        swap: float = Field(0.5, ge=0, le=1, description="probability, for view 2")
        align_weight: float = Field(0.1, ge=0, description="lambda")
        align_warmup: float = Field(0.1, ge=0, le=1, description="of the run, to reach lambda")
        align_temperature: float = Field(0.1, gt=0)
        masks: Literal["own", "wrong"] = Field("own", description="wrong: the control")

    @classmethod
    def views(cls, config: Any) -> dict[str, Stream]:
        whole = ImageView(size=288, crop=Crop(scale=(1, 1), ratio=(1, 1)), flip=0)
        drawn = {n: v.model_copy(update={"of": "whole"}) for n, v in byol().items()}
        mask = MaskView(follows="whole", size=whole.size)
        return {"images": Stream(views={**drawn, "whole": whole, "mask": mask})}

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        yield self.objective(self.embed(self.draw(batch, step)), step)

    @torch.no_grad()
    def draw(self, batch: Batch, step: Step) -> Batch:
        """`batch` with its views, their masks and the share of rows whose view 2 was swapped."""
        images = batch["whole"]
        salient = F.interpolate(batch["mask"][:, None].to(images) / 255, images.shape[2:])
        mask = (salient[:, 0] > 0.5).to(images)
        swapped, partner = self._chosen(len(images), step)
        swapped, partner = swapped.to(images.device), partner.to(images.device)
        if self.config.masks == "wrong":
            mask = mask[partner]
        fit = usable(mask)
        swapped &= fit & fit[partner]
        other, moved = swap(images, mask, partner)
        pick = swapped[:, None, None]
        second = torch.where(pick[..., None], other, images), torch.where(pick, moved, mask)
        found = {"id": batch["id"], "swapped": swapped.to(images)}
        for number, (x, m) in enumerate(((images, mask), second), 1):
            found |= self._cut(f"view{number}", number, x, m, batch["id"], step)
        return found

    def _chosen(self, rows: int, step: Step) -> tuple[Tensor, Tensor]:
        """(N,) which rows are swapped, and with whom: a cycle through the rows of each lane."""
        size, swapped, partner = rows // len(step.lanes), [], []
        for index, lane in enumerate(step.lanes):
            generator = step.generator(lane)
            swapped.append(torch.rand(size, generator=generator) < self.config.swap)
            cycle = torch.randperm(size, generator=generator)
            other = torch.empty_like(cycle)
            other[cycle] = cycle.roll(-1)
            partner.append(other + index * size)
        return torch.cat(swapped), torch.cat(partner)

    def _cut(
        self, name: str, number: int, images: Tensor, mask: Tensor, ids: Tensor, step: Step
    ) -> Batch:
        """One view and its mask: the first of some crops that shows enough of the foreground."""
        view: ImageView = self.streams["images"].views[name]  # type: ignore[assignment]
        samples = ids.cpu().numpy()
        sizes = [np.full(len(ids), side) for side in images.shape[2:]]
        tries = TRIES if self.config.swap or self.config.align_weight else 1
        plans = [
            view.plan(step.seed, step.epoch, samples, number + 2 * attempt, *sizes)
            for attempt in range(tries)
        ]
        boxes = torch.stack([torch.from_numpy(plan["box"]) for plan in plans]).to(images.device)
        good = shown(mask, boxes) >= KEPT
        good[0] |= ~good.any(0)
        box = boxes.gather(0, good.float().argmax(0)[None, :, None].expand(-1, -1, 4))[0]
        plan = {k: torch.from_numpy(v).to(images.device) for k, v in plans[0].items()}
        canvas = torch.cat([images, mask[:, None]], 1).mul(255).round().to(torch.uint8)
        pixels = view.cut_batch(canvas.permute(0, 2, 3, 1), box, plan["flip"]).permute(0, 3, 1, 2)
        drawn = view.render(pixels[:, :3], plan).to(images)
        return {name: drawn, f"{name}.mask": pixels[:, 3].to(images) / 255}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {"swapped": batch["swapped"]}
        maps: dict[str, Tensor] = {}
        for i in (1, 2):
            online = last_map(self.encoder, batch[f"view{i}"])
            h = online.mean((2, 3))
            found[f"p{i}"], found[f"h{i}"] = self.predictor(self.projector(h)), h.detach()
            with torch.no_grad():
                target = last_map(self.target_encoder, batch[f"view{i}"])
                found[f"t{i}"] = self.target_projector(target.mean((2, 3)))
            maps |= {f"online{i}": online, f"target{i}": target}
        first, second = batch["view1.mask"], batch["view2.mask"]
        temperature = self.config.align_temperature
        one = align(maps["online1"], maps["target2"], first, second, temperature)
        two = align(maps["online2"], maps["target1"], second, first, temperature)
        return {**found, "align": (one + two) / 2}

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        output = super().objective(embeddings, step)
        risen = (
            min(1.0, step.progress / self.config.align_warmup) if self.config.align_warmup else 1
        )
        aligned = embeddings["align"].mean()
        metrics = {
            "loss.byol": output.loss.detach(),
            "loss.align": aligned.detach(),
            "swapped": embeddings["swapped"].mean(),
        }
        loss = output.loss + self.config.align_weight * risen * aligned
        return Output(loss, metrics, output.embedding)


def align(
    online: Tensor, target: Tensor, mask: Tensor, target_mask: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of where the online map finds the target's foreground with where it is.

    Args:
        online, target: maps (N, C, h, w) of two views; no gradient goes to the target's.
        mask, target_mask: (N, H, W) in [0, 1], their foregrounds.

    Returns:
        (N,) in nats; 0 where one of the views shows no foreground.
    """
    grid = (online.shape[2], online.shape[3])
    with torch.autocast(online.device.type, enabled=False):
        m, other = (F.adaptive_avg_pool2d(x, grid).flatten(1) for x in (mask, target_mask))
        seen = (m.sum(1) > 0) & (other.sum(1) > 0)
        m, other = (x / x.sum(1, keepdim=True).clamp(min=1e-6) for x in (m, other))
        rows, keys = online.flatten(2), target.detach().flatten(2)
        rows, keys = (x if x.dtype == torch.float64 else x.float() for x in (rows, keys))
        query = (keys * other[:, None]).sum(2, keepdim=True)
        attention = F.cosine_similarity(rows, query, 1).div(temperature).log_softmax(1)
        return -(m * attention).sum(1) * seen


def shown(mask: Tensor, boxes: Tensor) -> Tensor:
    """The share of each mask's foreground (N, H, W) that lies in its boxes (T, N, 4): (T, N)."""
    sums = F.pad((mask > 0.5).float().cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, left, height, width = boxes.unbind(2)
    row = torch.arange(len(mask), device=mask.device)

    def corner(y: Tensor, x: Tensor) -> Tensor:
        return sums[row, y, x]

    bottom, right = top + height, left + width
    inside = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    return inside / sums[:, -1, -1].clamp(min=1)
