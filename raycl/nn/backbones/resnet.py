"""Residual networks (He et al. 2016; stride in the 3x3 convolution), of any width.

torchvision has these blocks too, but its import brings torch.compile's machinery: seconds, in the
driver and in every worker.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from raycl.nn.backbones.encoder import Encoder
from raycl.nn.batchnorm import BatchNorm, Scope
from raycl.nn.recompute import recompute_in_backward

Depth = Literal[18, 34, 50, 101]
Stem = Literal["imagenet", "cifar"]
OutputStride = Literal[8, 16, 32]

Norm = Callable[[int], nn.Module]


class Block(nn.Module):
    """Convolutions with batch norms, around which the input goes; names are torchvision's.

    Args:
        planes: output channels are `expansion` times as many.
        shortcut: what the input goes through, None to leave it as it is.
    """

    expansion = 1

    def __init__(
        self, channels: int, planes: int, norm: Norm, stride: int, shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = norm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = norm(planes)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A `Block` of three convolutions: narrowed, 3x3, widened."""

    expansion = 4

    def __init__(
        self, channels: int, planes: int, norm: Norm, stride: int, shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = norm(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


_BLOCKS: dict[int, tuple[type[Block | Bottleneck], tuple[int, ...]]] = {
    18: (Block, (2, 2, 2, 2)),
    34: (Block, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(Encoder):
    """A ResNet without classifier; its parameters carry torchvision's names.

    Strides and dilations have no parameters, so weights of one output stride fit all others.

    Args:
        depth: layers.
        width: channels of the first stage; SimCLR's "2x" is 128.
        stem: "imagenet" quarters the resolution; "cifar" keeps it (3x3, stride 1, no pooling), for
            images of about 32 pixels.
        output_stride: image pixels per cell of the last map, at most: the stages that would exceed
            it keep the resolution.
        dilate: whether these stages are dilated, so that each cell sees what it would have seen, as
            in dense prediction (torchvision's `replace_stride_with_dilation`, which has it for
            bottlenecks only). The label propagation of VFS and ContrastCorr take output stride 8
            without it; VFS's tracking dilates just the first convolution of a basic block.
        scope: whose rows batch norm shares its statistics with.
        recompute: whether blocks keep only their inputs for the backward pass.
    """

    def __init__(
        self,
        depth: Depth = 50,
        width: int = 64,
        stem: Stem = "imagenet",
        output_stride: OutputStride = 32,
        dilate: bool = True,
        scope: Scope = "lane",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        block, counts = _BLOCKS[depth]
        norm = partial(BatchNorm, scope=scope)
        self.dim = 8 * width * block.expansion
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        channels, pixels, dilation = width, 4 if stem == "imagenet" else 1, 1
        for index, count in enumerate(counts):
            planes, stride = width << index, 1 if index == 0 else 2
            before = dilation
            if pixels * stride > output_stride:
                dilation, stride = dilation * stride if dilate else 1, 1
            pixels *= stride
            shortcut = None
            if channels != planes * block.expansion:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, planes * block.expansion, 1, stride=stride, bias=False),
                    norm(planes * block.expansion),
                )
            blocks = [block(channels, planes, norm, stride, shortcut)]
            channels = planes * block.expansion
            blocks += [block(channels, planes, norm, 1, None) for _ in range(count - 1)]
            stage = nn.Sequential(*blocks)
            _dilate(stage, before, dilation)
            self.add_module(f"layer{index + 1}", stage)
            for part in stage if recompute else ():
                recompute_in_backward(part)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> globally averaged features (N, dim)."""
        return self.maps(x)["layer4"].mean((2, 3))

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The feature map (N, C, h, w) after each part: "stem" (pooled), "layer1" .. "layer4"."""
        maps = {"stem": self.maxpool(self.relu(self.bn1(self.conv1(x))))}
        x = maps["stem"]
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(name)(x)
            maps[name] = x
        return maps


def _dilate(stage: nn.Sequential, first: int, rest: int) -> None:
    """Dilates a stage's 3x3 convolutions; the first, whose stride it may replace, by `first`."""
    convolutions = (
        module
        for module in stage.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    )
    for index, convolution in enumerate(convolutions):
        dilation = rest if index else first
        convolution.dilation = convolution.padding = (dilation, dilation)
