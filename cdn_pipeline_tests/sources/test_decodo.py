"""The client against a server that speaks Decodo's shapes, and misbehaves in all the ways that were seen."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cdn_pipeline.sources.decodo import Decodo
from cdn_pipeline.sources.provider import Answer, NoProfile, ProvidedProfile, ProviderRefusedError, Refusal
from cdn_pipeline_tests.sources.decodo_service import (
    HURRY,
    TOKEN,
    DecodoService,
    Reply,
    profile_page,
    running_decodo,
    user,
)


@pytest.fixture
def service() -> Iterator[DecodoService]:
    with running_decodo() as service:
        yield service


@pytest.fixture
def client(service: DecodoService) -> Iterator[Decodo]:
    with service.client() as client:
        yield client


def fetch(client: Decodo, *usernames: str) -> dict[str, Answer]:
    answers = list(client.fetch(usernames))
    assert sorted(answer.username for answer in answers) == sorted(usernames)  # each has one answer
    return {answer.username: answer for answer in answers}


def refusals(answers: dict[str, Answer]) -> dict[str, Refusal | None]:
    return {name: answer.refusal if isinstance(answer, NoProfile) else None for name, answer in answers.items()}


def named(name: str) -> dict[str, Any]:
    return profile_page(user(username=name))


def test_one_profile_is_asked_for_synchronously(service: DecodoService, client: Decodo) -> None:
    service.order("nba", named("nba"))
    assert isinstance(fetch(client, "nba")["nba"], ProvidedProfile)
    assert service.calls == ["POST /v2/scrape"]


def test_several_profiles_are_one_batch_of_tasks_and_each_comes_with_its_own_answer(
    service: DecodoService, client: Decodo
) -> None:
    service.order("nba", named("nba"))
    service.order("secret", profile_page({"username": "secret", "is_private": True}))
    service.order("blocked", "", status=613)
    answers = fetch(client, "nba", "secret", "blocked", "unheard.of")
    assert refusals(answers) == {
        "nba": None,
        "secret": Refusal.PRIVATE,
        "blocked": Refusal.BLOCKED,
        "unheard.of": Refusal.EMPTY,
    }
    assert service.calls.count("POST /v3/task/batch") == 1


def test_a_batch_holds_no_more_profiles_than_the_plan_lets_through_in_a_second(service: DecodoService) -> None:
    with service.client(pace=replace(HURRY, calls_per_second=40)) as client:
        names = [f"name{number}" for number in range(41)]
        fetch(client, *names)
    assert service.calls.count("POST /v3/task/batch") == 2


def test_a_task_that_never_ends_is_given_up(service: DecodoService) -> None:
    service.looks_until_done = 1_000_000
    with service.client(pace=replace(HURRY, results_within_seconds=0.2)) as client:
        assert set(refusals(fetch(client, "nba", "lakers")).values()) == {Refusal.UNAVAILABLE}


def test_a_result_that_cannot_be_had_is_looked_for_again_and_not_asked_for_twice(
    service: DecodoService, client: Decodo
) -> None:
    for name in ("nba", "lakers"):
        service.order(name, named(name))
    service.results_replies.extend([Reply(500), Reply(503), Reply(613), Reply(404)])
    assert refusals(fetch(client, "nba", "lakers")) == {"nba": None, "lakers": Refusal.BLOCKED}
    assert service.asked == {"nba": 1}


def test_a_batch_that_cannot_be_put_down_ends_the_asking_but_not_the_looking(service: DecodoService) -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    for name in names:
        service.order(name, named(name))
    service.batch_faults.extend([None, Reply(500)])
    with service.client(pace=replace(HURRY, calls_per_second=2, poll_seconds=0.1)) as client:
        found = refusals(fetch(client, *names))
    assert found == {"a": None, "b": None, **dict.fromkeys("cdef", Refusal.UNAVAILABLE)}
    assert service.calls.count("POST /v3/task/batch") == 2


def test_a_batch_that_forgets_a_name_leaves_it_unanswered(service: DecodoService, client: Decodo) -> None:
    service.batch_faults.append(Reply(201, {"queries": [{"id": "1", "query": "somebody else"}]}))
    assert set(refusals(fetch(client, "nba", "lakers")).values()) == {Refusal.UNAVAILABLE}


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_was_not_worked_on_is_asked_again(service: DecodoService, client: Decodo, status: int) -> None:
    service.order("nba", named("nba"))
    service.replies.extend([Reply(status, headers={"Retry-After": "0"}), Reply(status)])
    assert isinstance(fetch(client, "nba")["nba"], ProvidedProfile)
    assert len(service.calls) == 3


@pytest.mark.parametrize(
    ("reply", "expected", "calls"),
    [
        (Reply(429), Refusal.RATE_LIMITED, 3),
        (Reply(429, headers={"Retry-After": "3600"}), Refusal.RATE_LIMITED, 1),
        (Reply(503), Refusal.UNAVAILABLE, 3),
        (Reply(500), Refusal.UNAVAILABLE, 1),
        (Reply(524), Refusal.UNAVAILABLE, 1),
        (Reply(613, {"message": "failed"}), Refusal.BLOCKED, 1),
        (Reply(200, {"status_code": 613}), Refusal.BLOCKED, 1),
        (Reply(200), Refusal.EMPTY, 1),
        (Reply(200, {"results": []}), Refusal.EMPTY, 1),
        (Reply(200, "<html>"), Refusal.EMPTY, 1),
    ],
)
def test_retries_are_bounded_and_the_rest_is_a_reason(
    service: DecodoService, client: Decodo, reply: Reply, expected: Refusal, calls: int
) -> None:
    service.replies.extend([reply] * 5)
    assert refusals(fetch(client, "nba")) == {"nba": expected}
    assert len(service.calls) == calls


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(401, {"message": "Unauthorized"}), "DECODO_AUTH_TOKEN"),
        (Reply(403), "DECODO_AUTH_TOKEN"),
        (Reply(402), "subscription"),
        (Reply(404), "DECODO_API_URL"),
        (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), "DECODO_API_URL"),
        (Reply(400, {"status": "failed", "message": "bad", "errors": [{"message": "target: unknown"}]}), "target"),
        (Reply(422, {"message": "Unknown target"}), "instagram_graphql_profile"),
        (Reply(200, {"status": "failed", "message": "Unknown target"}), "instagram_graphql_profile"),
    ],
)
@pytest.mark.parametrize("names", [["nba"], ["nba", "lakers", "bulls"]])
def test_what_only_an_operator_can_mend_is_one_failure_for_all_profiles(
    service: DecodoService, client: Decodo, reply: Reply, words: str, names: list[str]
) -> None:
    service.replies.extend([reply] * 5)
    with pytest.raises(ProviderRefusedError, match=words):
        list(client.fetch(names))
    assert len(service.calls) == 1


def test_a_batch_that_is_refused_with_200_is_one_failure_too(service: DecodoService, client: Decodo) -> None:
    service.batch_faults.append(Reply(200, {"errors": [{"message": "Limit of your plan exceeded"}]}))
    with pytest.raises(ProviderRefusedError, match="Limit of your plan exceeded"):
        list(client.fetch(["nba", "lakers"]))


def test_a_provider_that_is_not_there_answers_nothing() -> None:
    with Decodo("http://127.0.0.1:9", TOKEN, HURRY) as client:
        assert refusals(fetch(client, "nba")) == {"nba": Refusal.UNAVAILABLE}
        assert set(refusals(fetch(client, "nba", "lakers")).values()) == {Refusal.UNAVAILABLE}


def test_what_is_no_user_name_is_not_asked_for(service: DecodoService, client: Decodo) -> None:
    odd = ["", "a b", "../../v2/scrape", "name\n", "x" * 31, "ü"]
    assert set(refusals(fetch(client, *odd)).values()) == {Refusal.GONE}
    assert service.calls == []


def test_user_and_password_serve_instead_of_the_token(service: DecodoService) -> None:
    service.order("nba", named("nba"))
    with service.client(token="user:password") as client:
        assert isinstance(fetch(client, "nba")["nba"], ProvidedProfile)


def test_the_token_is_in_no_error_and_no_log(
    service: DecodoService, client: Decodo, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service.replies.extend([Reply(503), Reply(422, {"message": f"bad Authorization: Basic {TOKEN}"})])
    with pytest.raises(ProviderRefusedError) as caught:
        list(client.fetch(["nba"]))
    service.replies.append(Reply(200, {"message": TOKEN}))
    answers = fetch(client, "nba")
    told = [str(caught.value), repr(caught.value), repr(client), repr(answers), caplog.text]
    assert not any(TOKEN in words for words in told)
