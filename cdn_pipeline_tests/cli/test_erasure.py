"""`erase`: what it lists, what it asks, what it says, and its exit status."""

import uuid
from collections.abc import Iterator, Mapping

import pytest
import sqlalchemy as sa

from cdn_pipeline.sources.instagram import parse
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.cloudflare.zone import TOKEN, ZONE_ID, Zone, running_zone
from cdn_pipeline_tests.queue.catalogs import publish, reference, see, source_url, take, visible

OWNER = "0b5c8f1e-0000-4000-8000-000000000001"
SOURCE_URL = "https://host.example/v/t51.2885-15/picture_n.jpg?stp=dst-jpg_s640x640"


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], catalog: sa.Engine) -> Iterator[Zone]:
    """The command's CDN and the API that purges it."""
    with running_zone() as zone:
        for name, value in {
            **environment,
            "CDN_BASE_URL": zone.base_url,
            "CF_API_URL": zone.api_url,
            "CF_API_TOKEN": TOKEN,
            "CF_ZONE_ID": ZONE_ID,
        }.items():
            monkeypatch.setenv(name, value)
        with catalog.begin() as connection:
            connection.execute(sa.text("UPDATE cdn_delivery SET base_url = :url"), {"url": zone.base_url})
        yield zone


@pytest.fixture
def invoke_with_zone(invoke: Invoke, zone: Zone) -> Invoke:
    return invoke


@pytest.fixture
def one(connection: sa.Connection) -> sa.Connection:
    """One published image."""
    see(connection, reference(parse(SOURCE_URL), owner=OWNER))
    publish(connection, sha256="a" * 64)
    return connection


def image_ids(connection: sa.Connection) -> list[uuid.UUID]:
    return list(connection.scalars(sa.text("SELECT id FROM cdn_image_assets")))


def test_a_dry_run_lists_what_would_go_and_changes_nothing(invoke: Invoke, one: sa.Connection) -> None:
    result = invoke("erase", "--owner", OWNER, "--dry-run")
    assert result.exit_code == 0
    assert "1 image with 2 renditions and 1 original" in result.output
    assert all(path in result.output for path in visible(one) if path)
    assert len(image_ids(one)) == 1


def test_it_asks_and_a_no_changes_nothing(invoke: Invoke, one: sa.Connection) -> None:
    result = invoke("erase", "--owner", OWNER, answer="n\n")
    assert (result.exit_code, "cannot be undone" in result.output) == (1, True)
    assert len(image_ids(one)) == 1


def test_without_a_token_the_exit_status_is_2_and_the_prefixes_are_named(
    invoke: Invoke, one: sa.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDN_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    one.execute(sa.text("UPDATE cdn_delivery SET base_url = 'http://127.0.0.1:9'"))
    one.commit()
    result = invoke("erase", "--owner", OWNER.upper(), "--yes")
    assert result.exit_code == 2
    assert "Purge pending: CF_API_TOKEN and CF_ZONE_ID are not set" in result.output
    assert f"127.0.0.1:9/th/ig/{OWNER}" in result.output
    assert "Not verified" in result.output
    assert image_ids(one) == []
    assert invoke("erase").exit_code == 0
    assert "purge_pending" in invoke("erase").output


def test_done_is_exit_status_0_and_browsers_are_spoken_of(invoke_with_zone: Invoke, one: sa.Connection) -> None:
    result = invoke_with_zone("erase", "--owner", OWNER, "--yes", "--by", "operator", "--reason", "ticket 1")
    assert result.exit_code == 0, result.output
    assert "Erased 1 image: 2 renditions and 1 original are gone" in result.output
    assert "no longer serves it" in result.output
    assert "may keep it for 365 days" in result.output
    table = invoke_with_zone("erase").output
    assert all(word in table for word in ("done", OWNER, "operator", "ticket 1"))


def test_a_pending_purge_is_resumed(invoke: Invoke, one: sa.Connection, request: pytest.FixtureRequest) -> None:
    assert invoke("erase", "--owner", OWNER, "--yes").exit_code == 2
    request.getfixturevalue("zone")
    assert invoke("erase", "--resume").exit_code == 0
    assert "Every erasure is done." in invoke("erase", "--resume").output


@pytest.mark.parametrize("how", ["path", "url", "source url", "image"])
def test_one_picture_is_named_in_many_ways_and_again_when_it_is_gone(
    invoke_with_zone: Invoke, one: sa.Connection, how: str
) -> None:
    path = visible(one)[0] or ""
    subject = {
        "path": [path],
        "url": [f"https://img.example{path}"],
        "source url": [SOURCE_URL.replace("host", "another")],
        "image": ["--image", str(image_ids(one)[0])],
    }[how]
    # that the test's paths name
    one.execute(sa.text("UPDATE cdn_image_assets SET owner_id = 'owner'"))
    assert invoke_with_zone("erase", *subject, "--yes").exit_code == 0
    assert image_ids(one) == []
    assert invoke_with_zone("erase", *subject, "--yes").exit_code == 0


def test_what_means_several_pictures_is_refused(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference(owner=OWNER, image="1"), reference(source_url(picture="B"), owner=OWNER, image="2"))
    result = invoke("erase", OWNER, "--yes")
    assert (result.exit_code, "means 2 pictures" in result.output) == (1, True)
    assert len(take(connection)) == 2


@pytest.mark.parametrize(
    "subject", [["https://img.example/x.jpg"], ["--image", str(uuid.UUID(int=1))], ["--owner", " "]]
)
def test_what_there_is_not_is_exit_status_1(invoke: Invoke, connection: sa.Connection, subject: list[str]) -> None:
    assert invoke("erase", *subject, "--yes").exit_code == 1


def test_an_owner_who_has_no_image_yet_is_kept_out_all_the_same(
    invoke_with_zone: Invoke, connection: sa.Connection
) -> None:
    assert invoke_with_zone("erase", "--owner", OWNER, "--yes").exit_code == 0
    see(connection, reference(owner=OWNER))
    assert image_ids(connection) == []


def test_lifting_lets_in_again(invoke_with_zone: Invoke, one: sa.Connection) -> None:
    invoke_with_zone("erase", "--owner", OWNER, "--yes")
    assert "Lifted 1 tombstone" in invoke_with_zone("erase", "--owner", OWNER, "--lift", "--yes").output
    see(one, reference(owner=OWNER))
    assert len(image_ids(one)) == 1
    assert invoke_with_zone("erase", "--owner", OWNER, "--lift", "--yes").exit_code == 1


def test_before_it_lifts_it_says_what_of_whom(invoke_with_zone: Invoke, one: sa.Connection) -> None:
    see(one, reference(parse(SOURCE_URL), owner=OWNER, image="2", source_type="post_thumbnail"))
    image_id = str(image_ids(one)[0])
    assert invoke_with_zone("erase", "--image", image_id, "--yes").exit_code == 0
    result = invoke_with_zone("erase", "--image", image_id, "--lift", answer="n\n")
    assert f"owner {OWNER}: some of its images, 2 tombstones" in result.output
    assert result.output.index(OWNER) < result.output.index("Lift the tombstone?")
    assert one.scalar(sa.text("SELECT count(*) FROM cdn_tombstones")) == 2


def test_it_does_not_guess_which_of_several_erasures_to_lift(invoke_with_zone: Invoke, one: sa.Connection) -> None:
    assert invoke_with_zone("erase", SOURCE_URL, "--yes").exit_code == 0
    see(one, reference(parse(SOURCE_URL), owner="another", image="2"))
    assert invoke_with_zone("erase", SOURCE_URL, "--yes").exit_code == 0
    result = invoke_with_zone("erase", SOURCE_URL, "--lift", "--yes")
    assert result.exit_code == 1
    assert all(f"owner {owner}: " in result.output for owner in (OWNER, "another"))
    assert one.scalar(sa.text("SELECT count(*) FROM cdn_tombstones")) == 2


def test_a_catalog_that_does_not_answer_is_exit_status_1(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATALOG_DATABASE_URL", "postgresql://127.0.0.1:9/catalog")
    assert invoke("erase", "--owner", OWNER, "--yes").exit_code == 1


@pytest.mark.parametrize(
    "arguments", [["x", "--owner", "y"], ["--lift"], ["--resume", "--owner", "x"], ["--resume", "--lift"]]
)
def test_contradictions_are_refused(invoke: Invoke, arguments: list[str]) -> None:
    assert "name one" in invoke("erase", *arguments).output
