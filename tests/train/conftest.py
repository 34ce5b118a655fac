"""Object storage, for checkpoints."""

from tests.data.conftest import bucket, s3_server

__all__ = ["bucket", "s3_server"]
