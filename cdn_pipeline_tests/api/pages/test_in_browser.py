"""What an operator sees and does in a browser: at both widths, in both schemes, with the keyboard alone."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Page, expect

from cdn_pipeline.demo.faults import Fault
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.api.apis import TOKEN, api
from cdn_pipeline_tests.api.pages.browser import DESKTOP, PHONE, Scheme, Window, window
from cdn_pipeline_tests.engine.runs import run
from cdn_pipeline_tests.queue.catalogs import reference, see
from cdn_pipeline_tests.world import SmallWorld, World


@pytest.fixture
def world(small_world: SmallWorld, settings: Settings, catalog: sa.Engine) -> World:
    """A mirrored profile; its avatar's host has answered with a login page."""
    world = small_world(profiles=1, posts=2)
    with world.engine.connect() as connection:
        avatar = connection.scalar(sa.text("SELECT profile_pic_url_hd FROM profiles"))
    world.origin.misbehaviour.order(urlsplit(avatar).path, Fault.HTML_PAGE, attempts=2)
    run(settings)
    return world


@pytest.fixture
def url(settings: Settings, world: World) -> Iterator[str]:
    with api(settings) as client:
        yield str(client.base_url)


@pytest.fixture
def operator(browser: Browser, url: str) -> Iterator[Window]:
    """The window of an operator who has signed in."""
    with window(browser, url) as opened:
        opened.sign_in("ada", TOKEN)
        yield opened


# Contrasts change with the scheme and layouts with the width: axe, which takes most of the time, need not see all four.
LOOKS: tuple[tuple[int, Scheme, bool], ...] = (
    (DESKTOP, "light", True),
    (PHONE, "dark", True),
    (PHONE, "light", False),
    (DESKTOP, "dark", False),
)


@pytest.mark.parametrize(("width", "scheme", "with_axe"), LOOKS)
def test_every_page_is_readable_by_everybody(
    browser: Browser, url: str, world: World, catalog: sa.Engine, width: int, scheme: Scheme, with_axe: bool
) -> None:
    with catalog.begin() as connection:
        image = connection.scalar(sa.text("SELECT id FROM cdn_image_assets WHERE source_type = 'profile_avatar'"))
        see(connection, reference(image="due"))  # which nobody comes to: the overview says how a run is started
    stories = (f"/profiles/{world.profile_ids[0]}", f"/images/{image}", "/failures/not_an_image", "/search?q=avatar")
    with window(browser, url, width=width, scheme=scheme) as opened:
        opened.sign_in("ada", TOKEN)
        for path in ("/", "/runbook", "/search", *stories):
            opened.open(path)
            barriers = opened.barriers() if with_axe else []
            assert (path, opened.overflow, barriers) == (path, 0, [])
        opened.page.get_by_role("button", name="Sign out").click()
        opened.open("/sign-in")
        assert (opened.overflow, opened.barriers() if with_axe else []) == (0, [])
        assert opened.complaints == []


def test_an_operator_finds_a_failed_image_retries_it_and_sees_it_heal(
    operator: Window, settings: Settings, catalog: sa.Engine
) -> None:
    page = operator.page
    page.get_by_role("link", name="not an image").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Not an image")
    page.get_by_role("link", name="profile avatar").click()
    expect(page.locator("#state")).to_contain_text("waits for a URL")
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("status")).to_contain_text("1 opened again and due now")
    expect(page.locator("#state")).to_contain_text("due")
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)
    page.clock.install()
    page.reload()
    assert run(settings).published == 1
    page.clock.fast_forward(16_000)
    expect(page.locator("#state")).to_contain_text("completed")
    picture = page.get_by_role("img", name="as published")
    expect(picture).to_be_visible()
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("picture => picture.naturalWidth") > 0
    assert operator.complaints == []


def test_the_overview_keeps_itself_current_and_leaves_alone_what_is_in_use(
    operator: Window, catalog: sa.Engine
) -> None:
    page = operator.page
    page.clock.install()
    operator.open("/")
    expect(page.locator("#age")).to_contain_text("updates itself every 15 s")
    summary = page.locator("#shard-table summary")
    summary.press("Enter")
    with catalog.begin() as connection:
        connection.execute(
            sa.text("UPDATE cdn_image_assets SET failure_kind = 'source_gone' WHERE failure_kind IS NOT NULL")
        )
    assert_updates(page, "#failures", "source gone")
    expect(summary).to_be_focused()
    expect(page.locator("#shard-table table")).to_be_visible()
    assert operator.complaints == []


def assert_updates(page: Page, part: str, words: str) -> None:
    """Readings are some seconds old in the server's time, so it may take a second round of the page's."""
    for _ in range(20):
        page.clock.fast_forward(16_000)
        page.wait_for_timeout(1000)
        if words in page.locator(part).inner_text():
            return
    expect(page.locator(part)).to_contain_text(words)


def test_the_page_says_when_nobody_answers_any_more(operator: Window) -> None:
    page = operator.page
    page.clock.install()
    operator.open("/")
    page.route("**/*", lambda route: route.abort())
    for _ in range(6):
        page.clock.fast_forward(15_000)
    expect(page.locator("#age")).to_contain_text("the API has not answered since")


def test_what_an_action_came_to_is_said_once(operator: Window) -> None:
    page = operator.page
    told = page.get_by_role("status")
    page.get_by_role("button", name="Retry all").first.click()
    expect(told).to_contain_text("opened again")
    page.reload()
    expect(told).to_have_count(0)
    page.get_by_role("button", name="Hold priority 2").click()
    expect(told).to_contain_text("put on hold")
    page.get_by_role("link", name="Overview").click()
    expect(told).to_have_count(0)
    page.go_back()
    expect(told).to_have_count(0)


def test_what_an_action_came_to_goes_when_the_page_updates_itself_and_the_focus_has_left_it(operator: Window) -> None:
    page = operator.page
    told = page.get_by_role("status")
    page.clock.install()
    page.get_by_role("button", name="Retry all").first.click()
    expect(told).to_be_focused()
    page.clock.fast_forward(16_000)
    page.wait_for_timeout(500)
    expect(told).to_contain_text("opened again")
    page.get_by_role("searchbox").focus()
    page.clock.fast_forward(16_000)
    expect(told).to_have_count(0)
    assert operator.complaints == []


def test_the_keyboard_alone_is_enough(operator: Window) -> None:
    page = operator.page
    operator.open("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.get_by_role("button", name="Retry all").first.focus()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_be_focused()
    expect(page.get_by_role("status")).to_contain_text("opened again")
    assert outline != "none"


def test_a_profile_is_refreshed_and_the_queue_is_held(
    browser: Browser, url: str, world: World, catalog: sa.Engine
) -> None:
    with window(browser, url) as opened:
        page, profile = opened.page, f"/profiles/{world.profile_ids[0]}"
        opened.sign_in("ada", TOKEN, profile)
        page.get_by_role("button", name="Refresh this profile").click()
        expect(page.get_by_role("status")).to_contain_text("fetched again")
        page.get_by_role("button", name="Retry the profile avatar").click()
        expect(page.get_by_role("status")).to_contain_text("opened again")
        opened.open("/")
        page.get_by_role("button", name="Hold priority 2").click()
        expect(page.get_by_role("status")).to_contain_text("put on hold: 1")
        opened.open(profile)
        expect(page.locator(".card").first).to_contain_text("on hold")


def test_signing_out_takes_the_buttons_away(operator: Window) -> None:
    page = operator.page
    expect(page.get_by_role("button", name="Retry all").first).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Retry all")).to_have_count(0)
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()
