"""Encoders: images in, features out."""

from raycl.nn.backbones.resnet import ResNet

__all__ = ["ResNet"]
