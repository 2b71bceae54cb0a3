"""`compare`: the CDN against the sources of a small world, told and written down."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import sqlalchemy as sa

from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.engine.runs import folder, run
from cdn_pipeline_tests.observe.cdn import Cdn, running_cdn
from cdn_pipeline_tests.world import SmallWorld, World


@dataclass(frozen=True, slots=True)
class Site:
    """A world whose pictures are published, and the CDN in front of them."""

    world: World
    cdn: Cdn
    pictures: int


@pytest.fixture
def site(
    settings: Settings,
    small_world: SmallWorld,
    connection: sa.Connection,
    monkeypatch: pytest.MonkeyPatch,
    invoke: Invoke,
) -> Iterator[Site]:
    world = small_world(profiles=2, posts=2)
    published = run(settings).published
    world.origin.requests.reset()
    with running_cdn(folder(settings.objects_url)) as cdn:
        monkeypatch.setenv("CDN_BASE_URL", cdn.base_url)
        connection.execute(sa.text("UPDATE cdn_delivery SET base_url = :url"), {"url": cdn.base_url})
        yield Site(world, cdn, published)


def row(output: str, name: str, title: str) -> list[str]:
    """The cells of a table's row."""
    lines = output.split(title)[1].splitlines()
    return next(line.strip() for line in lines if line.strip().startswith(name)).removeprefix(name).split()


def test_both_places_are_asked_twice_for_every_picture_and_told_with_their_numbers(invoke: Invoke, site: Site) -> None:
    result = invoke("compare")
    assert result.exit_code == 0, result.output
    count = str(site.pictures)
    assert f"{count} pictures drawn at random of {count} published ones" in result.output
    for side in ("CDN", "legacy"):
        assert row(result.output, side, "Availability") == [count, "0", "0", "0", "0", count, "100.0"]
        for kind in ("cold", "warm"):
            n, *percentiles = row(result.output, f"{side}, {kind}", "Latency")
            assert n == count
            assert 0 < float(percentiles[0]) <= float(percentiles[1]) <= float(percentiles[2])
    assert row(result.output, "original", "Bytes")[0] == count
    assert row(result.output, "original", "Bytes")[-1] == "100"
    assert 0 < int(row(result.output, "256", "Bytes")[-1]) < int(row(result.output, "512", "Bytes")[-1]) < 100
    assert site.world.origin.requests.total == 2 * site.pictures
    assert len(site.cdn.requests) == 2 * site.pictures


def test_a_sample_is_no_larger_than_asked_for(invoke: Invoke, site: Site) -> None:
    result = invoke("compare", "--sample-size", "3")
    assert f"3 pictures drawn at random of {site.pictures} published ones" in result.output
    assert len(set(site.cdn.requests)) == 3


def test_what_is_missing_changed_or_expired_is_not_available(
    invoke: Invoke, connection: sa.Connection, site: Site
) -> None:
    avatar, other, *_ = connection.execute(sa.text("SELECT id, source_url FROM cdn_image_assets ORDER BY id")).all()
    expire = sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 h' WHERE id = :id")
    connection.execute(expire, {"id": avatar.id})
    largest = sa.text(
        "SELECT path FROM cdn_image_renditions WHERE asset_id = :id AND state = 'current' ORDER BY width DESC LIMIT 1"
    )
    path = connection.execute(largest, {"id": other.id}).scalar_one()
    (site.cdn.folder / path.lstrip("/")).write_bytes(b"another picture")
    result = invoke("compare", "--metrics", "availability")
    rest, count = str(site.pictures - 1), str(site.pictures)
    assert row(result.output, "CDN", "Availability")[:6] == [rest, "0", "1", "0", "0", count]
    assert row(result.output, "legacy", "Availability")[:6] == [rest, "1", "0", "0", "0", count]
    assert "Latency" not in result.output
    assert site.world.origin.requests.total == 2 * (site.pictures - 1)


def test_a_source_whose_breaker_is_open_is_left_alone_and_in_no_rate(
    invoke: Invoke, connection: sa.Connection, site: Site
) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_hosts (host, failures, failure_kind, opened_at, retry_at)
            VALUES ('127.0.0.1', 5, 'source_error', now(), now() + interval '10 minutes')""")
    )
    result = invoke("compare")
    count = str(site.pictures)
    assert row(result.output, "legacy", "Availability") == ["0", "0", "0", "0", count, "0", "–"]
    assert row(result.output, "legacy, cold", "Latency") == ["0", "–", "–", "–"]
    assert site.world.origin.requests.total == 0


def test_a_cdn_that_does_not_answer_at_all_is_named_with_its_base_url_and_what_starts_it(
    invoke: Invoke, site: Site, connection: sa.Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CDN_BASE_URL", "http://127.0.0.1:9")
    connection.execute(sa.text("UPDATE cdn_delivery SET base_url = 'http://127.0.0.1:9'"))
    result = invoke("compare", "--sample-size", "2", "--report", "report.md")
    assert result.exit_code == 1
    told = " ".join(result.output.split())
    hint = (
        "No answer from any URL of the CDN: is it running at http://127.0.0.1:9 (`make dev` or `make serve` starts it)?"
    )
    assert hint in told
    assert "No answer from any legacy URL" not in told
    assert hint in (tmp_path / "report.md").read_text()


def test_an_origin_that_does_not_answer_at_all_is_named_with_its_base_url(
    invoke: Invoke, site: Site, connection: sa.Connection
) -> None:
    move = "UPDATE cdn_image_assets SET source_url = replace(source_url, :base, 'http://127.0.0.1:9')"
    connection.execute(sa.text(move), {"base": site.world.origin.base_url})
    told = " ".join(invoke("compare", "--sample-size", "2").output.split())
    assert "No answer from any legacy URL: is the origin running at http://127.0.0.1:9?" in told
    assert "No answer from any URL of the CDN" not in told


def test_where_both_answer_nothing_is_asked_about_them(invoke: Invoke, site: Site) -> None:
    assert "No answer from any" not in invoke("compare", "--sample-size", "2").output


def test_sources_inside_our_network_are_not_asked(invoke: Invoke, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOWNLOAD_ALLOWED_NETWORKS", "10.0.0.0/8")
    result = invoke("compare", "--metrics", "availability")
    assert row(result.output, "legacy", "Availability")[3] == str(site.pictures)  # no answer
    assert site.world.origin.requests.total == 0


def test_bytes_alone_ask_nobody(invoke: Invoke, site: Site) -> None:
    result = invoke("compare", "--metrics", "bytes")
    assert row(result.output, "512", "Bytes")[0] == str(site.pictures)
    assert (site.world.origin.requests.total, site.cdn.requests) == (0, [])


class _Page(HTMLParser):
    """What of a page is loaded from elsewhere, and its elements that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_the_report_stands_alone_with_figures_and_plot(invoke: Invoke, site: Site, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    assert f"Written to {file}" in invoke("compare", "--report", str(file)).output
    text = file.read_text()
    assert f"legacy, warm (n={site.pictures})" in text
    assert site.cdn.base_url in text
    svg = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    assert len([path for path in svg.iter("{http://www.w3.org/2000/svg}path") if path.get("stroke-width") == "2"]) == 8
    if name.endswith(".html"):
        page = _Page()
        page.feed(text)
        assert (page.open, page.loaded) == ([], [])


def test_a_report_in_another_format_is_refused_before_anybody_is_asked(invoke: Invoke, site: Site) -> None:
    result = invoke("compare", "--report", "report.pdf")
    assert result.exit_code == 2
    assert ".html or .md" in result.output
    assert site.cdn.requests == []


def test_where_nothing_is_published_there_is_nothing_to_compare(invoke: Invoke, connection: sa.Connection) -> None:
    result = invoke("compare")
    assert result.exit_code == 1
    assert "Nothing is published yet" in result.output
