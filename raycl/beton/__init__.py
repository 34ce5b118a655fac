"""FFCV's `.beton` container, read and written with NumPy alone."""

from raycl.beton.fields import (
    BytesField,
    Field,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    RGBImageField,
    TorchTensorField,
    decode_jpeg,
)
from raycl.beton.layout import BetonError
from raycl.beton.reader import Reader
from raycl.beton.writer import Writer

__all__ = [
    "BetonError",
    "BytesField",
    "Field",
    "FloatField",
    "IntField",
    "JSONField",
    "NDArrayField",
    "RGBImageField",
    "Reader",
    "TorchTensorField",
    "Writer",
    "decode_jpeg",
]
