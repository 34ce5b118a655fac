"""Prints the report of a run or a sweep: a job's output is what reaches whoever submitted it."""

from __future__ import annotations

import base64
import gzip
import sys
from pathlib import Path

from raycl.cluster.jobs import BEGIN
from raycl.report import page, sweep


def main(place: Path) -> None:
    write = sweep.write_report if (place / "events.jsonl").is_file() else page.write_report
    content = write(place).read_bytes()
    print(BEGIN + base64.b64encode(gzip.compress(content)).decode(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
