"""Encoders: images in, features out."""

from raycl.nn.backbones.encoder import Encoder, extract
from raycl.nn.backbones.resnet import ResNet
from raycl.nn.backbones.timm import timm_encoder
from raycl.nn.backbones.vit import ViT

__all__ = ["Encoder", "ResNet", "ViT", "extract", "timm_encoder"]
