"""Write an encoder's features of a data set on the cluster that this job was submitted to.

    ray job submit --working-dir . -- python jobs/embed.py /shared/run s3://data/photos s3://made/features

It is `raycl embed`, with the same arguments; data and features must be reachable from all nodes.
"""

from __future__ import annotations

import sys

from raycl.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "embed")
    main()
