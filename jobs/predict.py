"""Write a classifier's predictions on the cluster that this job was submitted to.

    ray job submit --working-dir . -- python jobs/predict.py /shared/run s3://data/photos s3://made/classes

It is `raycl predict`, with the same arguments; data and OUT must be reachable from all nodes.
"""

from __future__ import annotations

import sys

from raycl.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "predict")
    main()
