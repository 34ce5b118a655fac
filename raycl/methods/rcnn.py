"""Faster and Mask R-CNN: detection and instance-segmentation transfer, judged by fine-tuning.

Ren, He, Girshick, Sun, NeurIPS 2015, arXiv 1506.01497; He, Gkioxari, Dollar, Girshick, ICCV 2017,
arXiv 1703.06870; on a feature pyramid (Lin et al., arXiv 1612.03144) with batch norm over the
global batch everywhere below the heads, as DenseCL is measured on COCO (arXiv 2011.09157).

    loss = objectness + box of anchors, + class + box (+ mask) of proposals

Networks, targets and losses are torchvision's with its defaults. Published runs resize the shorter
side to one of several sizes and pad; here views are squares, random crops in training and in the
protocol `detection` the whole image, squeezed. The published VOC protocol has no pyramid (C4).

Start it from a pretrained run: `init_from=RUN`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from raycl.errors import RayclError
from raycl.methods.base import (
    Batch,
    DataInfo,
    Method,
    Output,
    ResNetBackbone,
    Settings,
    Step,
    Stream,
    classes_of,
)
from raycl.nn.backbones import ResNet
from raycl.nn.batchnorm import BatchNorm
from raycl.nn.collectives import all_reduce_mean
from raycl.views.boxes import clipped, into_view
from raycl.views.image import Crop, ImageView, MaskView
from raycl.views.published import MEAN, STD

LEVELS = ("layer1", "layer2", "layer3", "layer4")


class RCNN(Method):
    """Proposals from a pyramid on the encoder's maps, and heads that judge them."""

    paper = "arXiv 1703.06870"
    encoder: ResNet

    class Config(Settings):
        classes: int | None = Field(None, ge=1, description="null: as many as the data name")
        masks: bool = Field(False, description="Mask R-CNN, of data with the field instances")
        anchor: int = Field(32, ge=1, description="side on the finest map; it doubles on each next")
        channels: int = Field(256, ge=1, description="of the pyramid and of the mask head")
        regions: int = Field(512, ge=4, description="proposals of an image that train the heads")
        visible: float = Field(
            0.3, gt=0, le=1, description="of a box: objects that a crop shows less of are left out"
        )
        encoder: ResNetBackbone = ResNetBackbone()

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        # They take seconds to import.
        from torchvision.models.detection import FasterRCNN, MaskRCNN
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__(config, data)
        settings, self.classes = self.config, classes_of(self)
        encoder = self.encoder = settings.encoder.build("global")
        channels, norm = settings.channels, partial(BatchNorm, scope="global")
        widths = [encoder.dim // 8, encoder.dim // 4, encoder.dim // 2, encoder.dim]
        self.pyramid = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool(), norm)
        self.pyramid.out_channels = channels  # torchvision asks a backbone for it
        hidden, kinds = 4 * channels, self.classes + 1  # the background is class 0 there
        sides = tuple((settings.anchor << level,) for level in range(len(LEVELS) + 1))
        parts = {
            "rpn_anchor_generator": AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
            "box_head": TwoMLPHead(channels * 7**2, hidden),
            "box_predictor": FastRCNNPredictor(hidden, kinds),
        }
        if settings.masks:
            parts["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, 1)
            parts["mask_predictor"] = MaskRCNNPredictor(channels, channels, kinds)
        built = (MaskRCNN if settings.masks else FasterRCNN)(self.pyramid, **parts)
        self.rpn, self.heads = built.rpn, built.roi_heads

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        image = ImageView(size=800, crop=Crop(scale=(0.5, 1)), mean=MEAN, std=STD)
        views: dict[str, ImageView | MaskView] = {"view1": image}
        if config.masks:
            views["mask1"] = MaskView(field="instances", follows="view1", size=image.size)
        return {"images": Stream(views=views, fields=("objects",))}

    def detections(self, images: Tensor) -> list[dict[str, Tensor]]:
        found, _ = self._detect(images)
        return [{**one, "labels": one["labels"] - 1} for one in found]

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        images = batch["view1"]
        rows = len(images) // len(step.lanes)
        lanes = [step.generator(lane, images.device) for lane in step.lanes]
        each = [generator for generator in lanes for _ in range(rows)]
        self.rpn.fg_bg_sampler = anchors = Sampler(256, 0.5, each)
        self.heads.fg_bg_sampler = regions = Sampler(self.config.regions, 0.25, each)
        _, losses = self._detect(images, self._targets(batch, step))
        # Each loss is a mean over what was sampled, of which ranks may have unlike numbers, and the
        # gradient is the mean over the ranks.
        counts = images.new_tensor([anchors.drawn, regions.drawn, regions.positive])
        anchor, region, mask = counts / all_reduce_mean(counts).clamp(min=1)
        share = {"loss_objectness": anchor, "loss_rpn_box_reg": anchor, "loss_mask": mask}
        share |= {"loss_classifier": region, "loss_box_reg": region}
        losses = {name: loss * share[name] for name, loss in losses.items()}
        metrics = {name.replace("_", ".", 1): loss.detach() for name, loss in losses.items()}
        yield Output(torch.stack(list(losses.values())).sum(), metrics)

    def _detect(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """What torchvision's parts find on images (N, 3, H, W), and in training their losses."""
        from torchvision.models.detection.image_list import ImageList

        maps = self.encoder.maps(images)
        maps = self.pyramid({str(i): maps[name] for i, name in enumerate(LEVELS)})
        sizes = [tuple(images.shape[2:])] * len(images)
        # A bfloat16 holds corners of boxes to 4 pixels only.
        with torch.autocast(images.device.type, enabled=False):
            maps = {name: x.to(images.dtype) for name, x in maps.items()}
            proposals, losses = self.rpn(ImageList(images, sizes), maps, targets)
            found, others = self.heads(maps, proposals, sizes, targets)
        return found, {**losses, **others}

    def _targets(self, batch: Batch, step: Step) -> list[dict[str, Tensor]]:
        """What torchvision is to find; objects that do not count are background to it, as crowds
        are in its own training."""
        images, objects = batch["view1"], batch["objects"]
        boxes, flip = objects[..., :4].to(images), batch["view1.flip"]
        boxes = into_view(boxes, batch["view1.box"], flip, images.shape[3])
        boxes, share = clipped(boxes, images.shape[3])
        kinds, ignored = objects[..., 4].long(), objects[..., 5] > 0
        if step.epoch == 0 and kinds.max() >= self.classes:  # an epoch shows every object
            raise RayclError(
                f"data.train: an object has the class {int(kinds.max())}, and "
                f"method.classes={self.classes} are 0 to {self.classes - 1}"
            )
        shown = (kinds >= 0) & ~ignored & (share >= self.config.visible)
        targets = []
        for image, kept in enumerate(shown):
            target = {"boxes": boxes[image][kept], "labels": kinds[image][kept] + 1}
            if self.config.masks:
                numbers = kept.nonzero() + 1
                target["masks"] = (batch["mask1"][image] == numbers[..., None]).to(torch.uint8)
            targets.append(target)
        return targets


class Sampler:
    """Draws examples as torchvision's BalancedPositiveNegativeSampler, by generators of the lanes.

    So the same are drawn on any number of ranks, but for proposals that rounding moves across a
    threshold: what is drawn after one of these differs.

    Args:
        size: examples of an image.
        share: of them, how many may be positive; negatives fill up.
        generators: one for each image of the batch.

    Attributes:
        drawn, positive: examples that were drawn so far, and the positive ones among them.
    """

    def __init__(self, size: int, share: float, generators: Sequence[torch.Generator]) -> None:
        self.size, self.most, self.generators = size, int(size * share), generators
        self.drawn = self.positive = 0

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positive (label >= 1) and of the negative (0) ones drawn, by image."""
        chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
        for of_image, generator in zip(labels, self.generators, strict=True):
            yes, positive = drawn(of_image >= 1, self.most, generator)
            no, negative = drawn(of_image == 0, self.size - positive, generator)
            chosen[0].append(yes)
            chosen[1].append(no)
            self.drawn += positive + negative
            self.positive += positive
        return chosen


def drawn(there: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """A mask (n,) of at most so many of the places where another one is set, and their number."""
    at = there.nonzero().flatten()
    at = at[torch.randperm(len(at), generator=generator, device=at.device)[:most]]
    return torch.zeros_like(there).index_fill_(0, at, True), len(at)
