"""Store the images of data sets otherwise, on the cluster that this job was submitted to.

    ray job submit --working-dir . -- python jobs/convert.py s3://data/photos s3://data/small \\
        --max-resolution 256 --write-mode jpg --workers 16 --address auto

It is `raycl data convert`, with the same arguments; all places must be reachable from all nodes.
"""

from __future__ import annotations

import sys

from raycl.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["data", "convert"]
    main()
