"""Looks for files that the reader cannot bear; a tool for developers, guided by coverage.

    python tests/beton/fuzz_reader.py -max_total_time=600 -rss_limit_mb=8000 [CORPUS]

Needs the package atheris; the options are libFuzzer's. atheris keeps some 40 KB of every run for
itself, which the limit has to leave room for. What it finds belongs into test_fuzz.py.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

try:
    import atheris
except ImportError:
    sys.exit("atheris is missing, so there is nothing to do: pip install atheris")

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["raycl.beton"]):
    import numpy as np

    from raycl.beton import BetonError, JSONField, NDArrayField
    from raycl.beton.fields import JPG, RAW, make_field
    from tests.beton.damage import Memory, Shard, check, picture, records, shards

SHARDS = shards()


def places(shard: Shard) -> list[int]:
    """Where damage may begin: the head, the tables and all payloads."""
    starts = [0, 24, shard.head, shard.tables[1], *records(shard)["pointer"].tolist()]
    return starts + [24 + 1041 * n for n in range((shard.head - 24) // 1041)]


PLACES = [places(shard) for shard in SHARDS]


def files(data: atheris.FuzzedDataProvider) -> None:
    """Overwrites parts of a whole file, and cuts it or adds to it now and then."""
    which = data.ConsumeIntInRange(0, len(SHARDS) - 1)
    shard, content = SHARDS[which], bytearray(SHARDS[which].content)
    for _ in range(data.ConsumeIntInRange(1, 6)):
        place = PLACES[which][data.ConsumeIntInRange(0, len(PLACES[which]) - 1)]
        at = min(place + data.ConsumeIntInRange(0, 700), len(content))
        part = data.ConsumeBytes(data.ConsumeIntInRange(1, 24))
        if data.ConsumeIntInRange(0, 30):
            part = part[: len(content) - at]
            content[at : at + len(part)] = part
        else:
            content[at:] = part
    check(shard, content, Memory(content))


def descriptors(data: atheris.FuzzedDataProvider) -> None:
    """Makes a field of any description and decodes any payload with it."""
    kind, length = data.ConsumeIntInRange(0, 7), data.ConsumeIntInRange(0, 400)
    arguments = data.ConsumeBytes(1024 if kind in (4, 6) else 0).ljust(1024, b"\0")
    if kind in (4, 6):
        arguments = arguments[:264] + arguments[264 : 264 + length].ljust(760, b"\0")
    try:
        field = make_field(kind, arguments)
    except BetonError:
        return
    cell = np.zeros(1, [("cell", field.member)])["cell"][0]
    with contextlib.suppress(BetonError):
        field.decode(cell, memoryview(data.ConsumeBytes(1 << 16)))


def images(data: atheris.FuzzedDataProvider) -> None:
    """Decodes any bytes as an image of the size that they say, or of another."""
    mode = data.PickValueInList([JPG, RAW, 7])
    height, width = data.ConsumeIntInRange(0, 0xFFFF), data.ConsumeIntInRange(0, 0xFFFF)
    agree = data.ConsumeBool()
    payload = data.ConsumeBytes(1 << 16)
    at = max(payload.find(b"\xff\xc0"), payload.find(b"\xff\xc2"))
    if agree and 0 <= at <= len(payload) - 9:
        height, width = (int.from_bytes(payload[at + i : at + i + 2], "big") for i in (5, 7))
    field = make_field(2, b"")
    stored = np.zeros(1, field.member)
    stored[0] = (mode, width, height, 0)
    with contextlib.suppress(BetonError):
        field.decode(stored[0], memoryview(payload))


TARGETS: list[Callable[[atheris.FuzzedDataProvider], None]] = [files, files, descriptors, images]


def one(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    TARGETS[provider.ConsumeIntInRange(0, len(TARGETS) - 1)](provider)


def seeds() -> list[bytes]:
    """What leads to real JPEGs and real descriptions of arrays.

    A provider takes numbers from the end, and truth values and bytes from the front.
    """
    found = []
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
        for colours in ("RGB", "L", "CMYK"):
            buffer = io.BytesIO()
            image = Image.fromarray(picture(20, 30, 0)).convert(colours)
            image.save(buffer, "JPEG", **options)
            found.append(b"\1" + buffer.getvalue() + bytes([0] * 5 + [TARGETS.index(images)]))
    for field in (NDArrayField("<u2", (2, 3)), JSONField()):
        arguments = field.arguments().ljust(1024, b"\0") if field.arguments() else b""
        tail = bytes([0, 60, field.type_id, TARGETS.index(descriptors)])
        found.append(arguments + b'{"a": [1, "b"]}\0'.ljust(12) + tail)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()):
            (Path(folder) / str(number)).write_bytes(seed)
        # libFuzzer writes into the first directory that it is given, which a user's own should be.
        atheris.Setup([sys.argv[0], "-max_len=4096", *sys.argv[1:], folder], one)
        atheris.Fuzz()
