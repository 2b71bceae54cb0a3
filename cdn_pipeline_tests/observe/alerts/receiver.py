"""A webhook's receiver on this machine: a real HTTP server that keeps what it is sent, or refuses it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from pydantic import SecretStr

from cdn_pipeline.demo.serving import serving_handler

SECRET = "secret-path-of-the-webhook"


@dataclass
class Webhook:
    """What arrived, as (title, message); `is_down` refuses."""

    port: int = 0
    is_down: bool = False
    arrived: list[tuple[str, str]] = field(default_factory=list)
    refused: int = 0
    came: threading.Event = field(default_factory=threading.Event)  # something has arrived

    @property
    def url(self) -> str:
        """As ALERT_URLS has it."""
        return f"json://127.0.0.1:{self.port}/{SECRET}"

    @property
    def urls(self) -> SecretStr:
        return SecretStr(self.url)

    @property
    def titles(self) -> list[str]:
        return [title for title, _ in self.arrived]

    def receive(self, body: bytes) -> int:
        if self.is_down:
            self.refused += 1
            return 503
        sent = json.loads(body)
        self.arrived.append((sent["title"], sent["message"]))
        self.came.set()
        return 200


@contextmanager
def running_webhook() -> Iterator[Webhook]:
    webhook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(webhook.receive(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with serving_handler(Handler) as webhook.port:
        yield webhook
