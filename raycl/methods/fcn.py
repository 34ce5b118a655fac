"""FCN: segmentation transfer, the protocol that judges a pretrained encoder by fine-tuning it.

Long, Shelhamer, Darrell, CVPR 2015, arXiv 1411.4038; with the dilated encoder and the two heads
that DenseCL is measured with (arXiv 2011.09157, section 4).

    loss = CE(head(last map)) + auxiliary_weight CE(auxiliary(map before)), over labelled pixels

Start it from a pretrained run: `init_from=RUN`.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

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
)
from raycl.nn.backbones import ResNet
from raycl.nn.batchnorm import BatchNorm
from raycl.nn.collectives import all_reduce_mean
from raycl.views.image import Crop, ImageView, MaskView
from raycl.views.published import MEAN, STD


class FCN(Method):
    """Two 3x3 convolutions and a classifier on the encoder's last map; a lighter head before it."""

    paper = "arXiv 1411.4038"
    encoder: ResNet

    class Config(Settings):
        classes: int = Field(21, ge=2)
        ignore: int = Field(255, ge=0, le=255, description="label of pixels that do not count")
        hidden: int = Field(512, ge=1)
        auxiliary_weight: float = Field(0.4, ge=0, description="of the head on the map before")
        encoder: ResNetBackbone = ResNetBackbone(output_stride=8)

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        settings = self.config
        encoder = self.encoder = settings.encoder.build("global")
        last, hidden, classes = encoder.dim, settings.hidden, settings.classes
        self.head = nn.Sequential(
            *conv(last, hidden), *conv(hidden, hidden), nn.Conv2d(hidden, classes, 1)
        )
        before = last // 2
        self.auxiliary = nn.Sequential(
            *conv(before, before // 4), nn.Conv2d(before // 4, classes, 1)
        )

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        image = ImageView(size=512, crop=Crop(scale=(0.25, 1), ratio=(1, 1)), mean=MEAN, std=STD)
        mask = MaskView(follows="view1", size=image.size)
        return {"images": Stream(views={"view1": image, "mask1": mask})}

    def logits(self, images: Tensor) -> Tensor:
        """Scores of the classes (N, K, h, w) on the last map's cells, for images (N, 3, H, W)."""
        return self.head(list(self.encoder.maps(images).values())[-1])

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        before, last = list(self.encoder.maps(batch["view1"]).values())[-2:]
        mask = batch["mask1"].to(last.dtype)  # parts of a batch are joined as floats
        return {"main": self.head(last), "before": self.auxiliary(before), "mask": mask}

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        truth = embeddings["mask"].detach().long()
        if step.epoch == 0:  # it waits for the device, and an epoch shows every mask
            self._check(truth)
        main, extra = (
            pixelwise(embeddings[name], truth, self.config.ignore) for name in ("main", "before")
        )
        guess = F.interpolate(embeddings["main"].detach(), truth.shape[1:]).argmax(1)
        right = (guess == truth).sum() / (truth != self.config.ignore).sum().clamp(min=1)
        metrics = {"loss.main": main.detach(), "pixel_accuracy": right}
        return Output(main + self.config.auxiliary_weight * extra, metrics)

    def _check(self, truth: Tensor) -> None:
        classes, ignore = self.config.classes, self.config.ignore
        highest = int(truth.masked_fill(truth == ignore, 0).max())
        if highest >= classes:
            raise RayclError(
                f"data.train: a mask holds the label {highest}, and method.classes={classes} are 0 "
                f"to {classes - 1}; give more classes, or method.ignore={highest} if it marks "
                f"pixels without one"
            )


def conv(channels: int, to: int) -> list[nn.Module]:
    """A 3x3 convolution with batch norm over the global batch and a ReLU."""
    same = nn.Conv2d(channels, to, 3, padding=1, bias=False)
    return [same, BatchNorm(to, "global"), nn.ReLU(inplace=True)]


def pixelwise(logits: Tensor, truth: Tensor, ignore: int) -> Tensor:
    """Cross-entropy over the labelled pixels of all ranks; this rank's part of it.

    Args:
        logits: (N, K, h, w), upsampled bilinearly to the truth's pixels.
        truth: (N, H, W) classes.
        ignore: label of pixels that do not count.
    """
    upsampled = F.interpolate(logits, truth.shape[1:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(upsampled, truth, ignore_index=ignore, reduction="sum")
    # Ranks have unlike numbers of labelled pixels, and the gradient is the mean over the ranks.
    return loss / all_reduce_mean((truth != ignore).sum().to(loss)).clamp(min=1)
