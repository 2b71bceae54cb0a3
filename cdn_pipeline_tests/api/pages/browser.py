"""Headless Chromium, driven by Playwright: what a person sees, without leaving this machine."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, Route, sync_playwright

from cdn_pipeline_tests.pipelines import BASE_URL

CHROMIUM = Path("/usr/bin/chromium")  # Debian's package `chromium`
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

DESKTOP, PHONE = 1280, 360  # CSS pixels
Scheme = Literal["light", "dark"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a module; they are skipped where there is none and nobody requires it."""
    if not CHROMIUM.exists() and os.environ.get("CDN_PIPELINE_CHROMIUM") != "required":
        pytest.skip("Debian's package chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Window:
    """A page of the API in a browser of its own, and what its console has complained of."""

    page: Page
    base_url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        """Goes to a page and waits until it has loaded."""
        self.page.goto(self.base_url + path)

    def sign_in(self, name: str, token: str, next_path: str = "/") -> None:
        """As a person does."""
        self.open(f"/sign-in?next={next_path}")
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_label("Token").fill(token)
        self.page.get_by_role("main").get_by_role("button", name="Sign in").click()

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        root = "document.documentElement"
        return int(self.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))

    def barriers(self) -> Sequence[str]:
        """What axe finds serious or critical."""
        violations: list[dict[str, Any]] = Axe().run(self.page).response["violations"]
        return [
            f"{each['id']}: {each['nodes'][0]['html']}"
            for each in violations
            if each["impact"] in ("serious", "critical")
        ]


@contextmanager
def window(browser: Browser, base_url: str, *, width: int = DESKTOP, scheme: Scheme = "light") -> Iterator[Window]:
    """A window of this width; pictures of the CDN come from the API, which serves them under the same paths."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened = Window(context.new_page(), base_url.rstrip("/"))

    def from_the_api(route: Route) -> None:
        route.continue_(url=route.request.url.replace(BASE_URL, opened.base_url))

    context.route(f"{BASE_URL}/**", from_the_api)
    opened.page.on(
        "console",
        lambda message: opened.complaints.append(message.text) if message.type in ("error", "warning") else None,
    )
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    try:
        yield opened
    finally:
        context.close()
