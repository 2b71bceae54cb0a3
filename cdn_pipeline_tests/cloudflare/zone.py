"""A stand-in for a zone of Cloudflare's: its cache in front of a store, and the API that purges it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from pydantic import SecretStr

from cdn_pipeline.cloudflare.purge import CachePurge
from cdn_pipeline.demo.serving import serving_handler

ZONE_ID = "0123456789abcdef0123456789abcdef"
TOKEN = "token-of-the-zone"

Store = Callable[[str], bytes | None]  # what lies under a key


@dataclass
class Zone:
    """Copies by path and `Origin`, as Cloudflare's default cache key has them."""

    store: Store
    port: int = 0
    copies: dict[tuple[str, str | None], bytes] = field(default_factory=dict)
    purges: list[dict[str, Any]] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)  # given first, instead of a purge

    @property
    def base_url(self) -> str:
        return f"http://{self.host}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{self.base_url}/client/v4"

    def client(self, token: str = TOKEN) -> CachePurge:
        return CachePurge(ZONE_ID, SecretStr(token), api_url=self.api_url)

    def get(self, path: str, origin: str | None) -> bytes | None:
        found = self.copies.get((path, origin)) or self.store(path.removeprefix("/"))
        if found is not None:
            self.copies[path, origin] = found
        return found

    def purge(self, path: str, authorization: str, what: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        self.purges.append(what)
        if self.answers:
            return self.answers.pop(0)
        if path != f"/client/v4/zones/{ZONE_ID}/purge_cache" or authorization != f"Bearer {TOKEN}":
            return 403, {}, refusal(10000, "Authentication error")
        if len(what.get("prefixes", [])) > 30 or len(what.get("files", [])) > 100:
            return 400, {}, refusal(1094, "too many")
        prefixes = [f"{prefix}/" for prefix in what.get("prefixes", [])]
        files = {_file(file) for file in what.get("files", [])}
        self.copies = {
            (path, origin): data
            for (path, origin), data in self.copies.items()
            if not f"{self.host}{path}/".startswith(tuple(prefixes)) and (f"{self.base_url}{path}", origin) not in files
        }
        return 200, {}, {"success": True, "errors": [], "messages": [], "result": {"id": ZONE_ID}}


def _file(file: Any) -> tuple[str, str | None]:
    return (file, None) if isinstance(file, str) else (file["url"], file["headers"]["Origin"])


def refusal(code: int, message: str) -> dict[str, Any]:
    return {"success": False, "errors": [{"code": code, "message": message}], "messages": [], "result": None}


@contextmanager
def running_zone(store: Store = lambda key: None) -> Iterator[Zone]:
    """The zone behind a real server on this machine."""
    zone = Zone(store)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = zone.get(self.path, self.headers.get("Origin"))
            self._answer(404 if found is None else 200, {}, found or b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, answer = zone.purge(self.path, self.headers["Authorization"], json.loads(body))
            self._answer(status, headers, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving_handler(Handler) as zone.port:
        yield zone
