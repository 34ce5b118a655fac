"""Encoders: images in, features out."""

from raycl.nn.backbones.encoder import Encoder, extract
from raycl.nn.backbones.resnet import ResNet
from raycl.nn.backbones.timm import timm_encoder

__all__ = ["Encoder", "ResNet", "extract", "timm_encoder"]
