import pytest

from cdn_pipeline_tests.s3 import moto_server, object_store, rclone_server

__all__ = ["moto_server", "object_store", "rclone_server"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
