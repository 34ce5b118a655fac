"""`python -m raycl`, for where only Python is on the path."""

from raycl.cli import main

main()
