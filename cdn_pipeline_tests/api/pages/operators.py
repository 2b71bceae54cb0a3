"""Whoever signs in and presses buttons, without a browser."""

import re
from html import unescape

import httpx

from cdn_pipeline_tests.api.apis import TOKEN

NAME = "ada"


def sign_in(client: httpx.Client, *, token: str = TOKEN, name: str = NAME, next_path: str = "/") -> httpx.Response:
    """Sends the form; the client keeps the session."""
    return client.post("/sign-in", data={"name": name, "token": token, "next": next_path})


def press(client: httpx.Client, path: str, **fields: str) -> httpx.Response:
    """Sends the form of an action with the session's own `csrf`, and follows to the page that says what it came to."""
    return client.post(f"/actions/{path}", data={"csrf": csrf(client), **fields}, follow_redirects=True)


def csrf(client: httpx.Client) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/").text)
    assert found, "nobody is signed in"
    return unescape(found[1])


def message(answer: httpx.Response) -> str:
    """What the page says of the last action; empty if nothing."""
    found = re.search(r'<p class="message[^>]*>(.*?)</p>', answer.text, re.DOTALL)
    return unescape(found[1]) if found else ""
