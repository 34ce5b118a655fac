"""Folders of video clips, laid out as image folders are: by class, by split, or side by side.

Every clip is stored as the file that it is, in a bytes field called "video": decoding it again and
again is left to the reader, which needs a few frames of it.
"""

from __future__ import annotations

from pathlib import Path

from raycl.data.importers import PAGE, Split
from raycl.data.importers.imagefolder import files_by_split
from raycl.errors import RayclError

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".ogv", ".flv")
MAX_CLIP = 1 << 30
# How the containers with these suffixes begin: (position, bytes).
_SIGNATURES = (
    *((4, box) for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),  # mp4, mov
    (8, b"AVI "),
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska and WebM
    (0, b"\0\0\1"),  # MPEG program and elementary streams
    (0, b"\x47"),  # MPEG transport stream
    (0, b"OggS"),
    (0, b"FLV"),
)


def splits(source: Path) -> list[Split]:
    """Lists the clips of every split.

    Raises:
        RayclError: there are no clips, folders whose meaning is unclear, or a clip above 1 GiB.
    """
    parts, classes = files_by_split(source, SUFFIXES, "video clips")
    found = []
    for name, part in parts.items():
        size, longest = max((Path(path).stat().st_size, path) for path in part.paths)
        if size > MAX_CLIP:
            raise RayclError(
                f"{longest}: takes {size / 2**20:.0f} MiB, a page at most {MAX_CLIP >> 20}; cut it "
                f"into shorter clips"
            )
        found.append(
            Split(
                name,
                part,
                bool(part.labels),
                classes if part.labels else None,
                field="video",
                page=max(PAGE, 1 << (size - 1).bit_length()),
                stamp=part.stamp(),
            )
        )
    return found


def check(content: bytes) -> None:
    """Looks at the first bytes of a clip.

    Raises:
        ValueError: it begins like none of the known containers.
    """
    if not any(content[at : at + len(mark)] == mark for at, mark in _SIGNATURES):
        raise ValueError("it is empty" if not content else "no video container begins like this")
