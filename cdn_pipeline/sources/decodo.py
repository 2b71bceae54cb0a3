"""Decodo's scraping API as a provider of fresh URLs.

One profile is asked for synchronously (`POST /v2/scrape`), several as a batch of tasks (`POST /v3/task/batch`) whose
results are polled (`GET /v3/task/ID/results`: 204 until they are there). Tried again within seconds is only what the
vendor has not worked on: 429, 502, 503, 504 and connections that failed. A profile that came back empty or blocked is a
question of its own, which costs: whether to ask it again is for those who know the budget.

The vendor's SDK dropped the target in September 2026 (2.3.0). Should the servers do so too, that is one failure for an
operator and not one per profile.
"""

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import httpx
import stamina

from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.decodo_payloads import (
    message_of,
    names_unknown_target,
    read_body,
    results_of,
    tasks_of,
)
from cdn_pipeline.sources.provider import Answer, NoProfile, ProviderRefusedError, Refusal

TARGET = "instagram_graphql_profile"

_MAX_BODY = 8 << 20  # bytes; a profile with twelve posts has 0.2 MB
_SYNC_SECONDS = 180.0  # the vendor's own limit
_CALL_SECONDS = 30.0  # for calls that only put tasks down or look for results
_MAX_RETRY_AFTER = 60.0  # seconds; who wants a longer pause is asked another night
_BLOCKED_BY_TARGET = 613
_NOT_WORKED_ON = (429, 502, 503, 504)
_USERNAME = re.compile(r"[A-Za-z0-9._]{1,30}")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often Decodo is called, and for how long."""

    calls_per_second: float  # also the most profiles of one batch, which the plan's rate limits as well
    poll_seconds: float = 3.0  # between two looks at what is still pending
    results_within_seconds: float = 300.0
    first_retry_seconds: float = 1.0


class Decodo:
    """A client of one account; a context manager."""

    name = "decodo"

    def __init__(self, api_url: str, token: str, pace: Pace) -> None:
        """Takes the API's base URL and the account's token, or `user:password` instead of the token."""
        self._pace = pace
        self._next_call = 0.0  # monotonic seconds
        credentials = base64.b64encode(token.encode()).decode() if ":" in token else token.removeprefix("Basic ")
        self._secrets = (token.encode(), credentials.encode())
        self._client = httpx.Client(
            base_url=api_url,
            headers={"Authorization": f"Basic {credentials}", "Accept": "application/json"},
            trust_env=False,  # neither proxies nor .netrc, as for downloads
        )
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        self._resources.enter_context(self._client)
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """The account that the environment names, if it names one."""
        if settings.decodo_auth_token is None:
            return None
        pace = Pace(calls_per_second=settings.decodo_requests_per_second)
        return cls(settings.decodo_api_url, settings.decodo_auth_token.get_secret_value(), pace)

    def fetch(self, usernames: Sequence[str]) -> Iterator[Answer]:
        """Asks for these profiles, each once; yields one answer for each, in the order in which they come.

        Raises:
            ProviderRefusedError: wrong credentials, a subscription that has ended, a target that is no longer offered.
        """
        askable = [name for name in usernames if _USERNAME.fullmatch(name)]
        yield from (NoProfile(name, Refusal.GONE, "no user name") for name in usernames if name not in askable)
        if len(askable) == 1:
            yield self._scrape(askable[0])
        elif askable:
            yield from self._scrape_batches(askable)

    def _scrape(self, username: str) -> Answer:
        try:
            body = self._call("POST", "/v2/scrape", _SYNC_SECONDS, {"target": TARGET, "query": username})
        except _Unanswered as failure:
            return failure.answer(username)
        return read_body(body, username)

    def _scrape_batches(self, usernames: Sequence[str]) -> Iterator[Answer]:
        size = max(1, int(self._pace.calls_per_second))
        tasks: dict[str, str] = {}
        for start in range(0, len(usernames), size):
            batch = usernames[start : start + size]
            try:
                tasks |= self._put_down(batch)
            except _Unanswered as failure:
                yield from (failure.answer(username) for username in usernames[start:])
                break
            missing = (name for name in batch if name not in tasks)
            yield from (NoProfile(name, Refusal.UNAVAILABLE, "no task in the batch") for name in missing)
        yield from self._poll(tasks)

    def _put_down(self, usernames: Sequence[str]) -> Mapping[str, str]:
        """Task ids by user name."""
        question = {"target": TARGET, "query": list(usernames)}
        body = self._call("POST", "/v3/task/batch", _CALL_SECONDS, question)
        tasks = tasks_of(body)
        if not tasks and (words := message_of(body)):
            raise _refused(f"takes no batch: {words}")
        return {name: task for name, task in tasks.items() if name in usernames}

    def _poll(self, tasks: Mapping[str, str]) -> Iterator[Answer]:
        pending = dict(tasks)
        give_up = time.monotonic() + self._pace.results_within_seconds
        while pending and time.monotonic() < give_up:
            time.sleep(self._pace.poll_seconds)
            for username, task in list(pending.items()):
                if answer := self._look(username, task):
                    del pending[username]
                    yield answer
        yield from (NoProfile(name, Refusal.UNAVAILABLE, "no result in time") for name in pending)

    def _look(self, username: str, task: str) -> Answer | None:
        """The answer of a task; None while it is pending, or cannot be had: it is kept for a day and paid for."""
        try:
            body = self._call("GET", f"/v3/task/{_segment(task)}/results", _CALL_SECONDS)
        except _Unanswered as failure:
            return failure.answer(username) if failure.refusal is Refusal.BLOCKED else None
        return None if body is _PENDING else read_body(body, username)

    def _call(self, method: str, path: str, seconds: float, question: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer; `_PENDING` if there is none yet.

        Raises:
            ProviderRefusedError: no question will be answered.
            _Unanswered: this one was not.
        """
        for attempt in stamina.retry_context(
            on=_worth_another_call, attempts=3, timeout=None, wait_initial=self._pace.first_retry_seconds, wait_max=30
        ):
            with attempt:
                self._take_turn()
                status, body = self._exchange(method, path, seconds, question)
        words = message_of(body)
        if status in (400, 422) or (not results_of(body) and names_unknown_target(words)):
            raise _refused(f"does not take the question for {TARGET} ({words or f'status {status}'})")
        if status not in (200, 201, 202, 204):
            refusal = Refusal.BLOCKED if status == _BLOCKED_BY_TARGET else Refusal.UNAVAILABLE
            raise _Unanswered(refusal, f"status {status}")
        return _PENDING if status in (202, 204) else body

    def _exchange(self, method: str, path: str, seconds: float, question: Mapping[str, Any] | None) -> tuple[int, Any]:
        """Status and JSON of one request; a body that is no JSON is None."""
        try:
            with self._client.stream(method, path, json=question, timeout=seconds) as response:
                _raise_for_status(response)
                return response.status_code, self._read(response, time.monotonic() + seconds)
        except httpx.ConnectError as error:
            raise _Unanswered(Refusal.UNAVAILABLE, "no connection", not_worked_on=True) from error
        except httpx.HTTPError as error:
            raise _Unanswered(Refusal.UNAVAILABLE, type(error).__name__) from error

    def _take_turn(self) -> None:
        time.sleep(max(0.0, self._next_call - time.monotonic()))
        self._next_call = time.monotonic() + 1 / self._pace.calls_per_second

    def _read(self, response: httpx.Response, give_up: float) -> Any:
        """The body's JSON, or None; without our credentials, should the vendor repeat what it was sent.

        Raises:
            _Unanswered: it is too long or too slow.
        """
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MAX_BODY or time.monotonic() > give_up:
                raise _Unanswered(Refusal.UNREADABLE, f"an answer too long or too slow, {len(body):,} bytes so far")
        for secret in self._secrets:
            body = body.replace(secret, b"*")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return None


_PENDING = object()


class _Unanswered(Exception):
    """One question got no answer; `not_worked_on`: and cost nothing, so that it may be put again at once."""

    def __init__(
        self, refusal: Refusal, detail: str, *, not_worked_on: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(refusal, detail)
        self.refusal = refusal
        self.detail = detail
        self.not_worked_on = not_worked_on
        self.retry_after = retry_after

    def answer(self, username: str) -> Answer:
        return NoProfile(username, self.refusal, self.detail)


def _worth_another_call(error: Exception) -> bool | float:
    """For stamina: whether to try again, or after how many seconds."""
    if not isinstance(error, _Unanswered) or not error.not_worked_on:
        return False
    if error.retry_after is None:
        return True
    return error.retry_after if error.retry_after <= _MAX_RETRY_AFTER else False


def _raise_for_status(response: httpx.Response) -> None:
    """Not httpx's own: 613 is neither a client's nor a server's error to it."""
    status = response.status_code
    if status in (401, 403):
        raise _refused(f"refuses our credentials (status {status}): check DECODO_AUTH_TOKEN")
    if status == 402:
        raise _refused("wants to be paid (status 402): look at the subscription")
    if response.is_redirect or (status == 404 and response.request.method == "POST"):
        raise _refused(f"is not at DECODO_API_URL (status {status})")
    if status in _NOT_WORKED_ON:
        refusal = Refusal.RATE_LIMITED if status == 429 else Refusal.UNAVAILABLE
        raise _Unanswered(refusal, f"status {status}", not_worked_on=True, retry_after=_retry_after(response))


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds; the other form, a date, counts as none."""
    seconds = response.headers.get("Retry-After", "")
    return float(seconds) if re.fullmatch("[0-9]{1,9}", seconds) else None


def _refused(what: str) -> ProviderRefusedError:
    return ProviderRefusedError(f"Decodo {what}. Nothing more is asked in this run.")


def _segment(task: str) -> str:
    """A task's id as one segment of a path: it comes from outside."""
    return re.sub(r"[^A-Za-z0-9_-]", "", task) or "-"
