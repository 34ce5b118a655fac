"""Score a run on the cluster that this job was submitted to.

    ray job submit --working-dir . -- python jobs/evaluate.py /shared/run --protocol knn --json

It is `raycl evaluate`, with the same arguments.
"""

from __future__ import annotations

import sys

from raycl.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
