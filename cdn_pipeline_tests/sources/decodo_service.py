"""A local stand-in for Decodo's API, in the shapes that the vendor documents and that were seen: over real HTTP."""

import contextlib
import json
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiohttp import web
from sqlalchemy import Engine, select

from cdn_pipeline.demo.app_database import posts_table, profiles_table
from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.demo.signing import Signer
from cdn_pipeline.sources.decodo import TARGET, Decodo, Pace

TOKEN = "dXNlcjpwYXNzd29yZA=="
HURRY = Pace(calls_per_second=1000, poll_seconds=0.01, results_within_seconds=5, first_retry_seconds=0.01)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer as a whole."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        return web.json_response(self.body, status=self.status, headers=self.headers)


@dataclass
class DecodoService:
    """What it answers is ordered by tests: results by user name, one after the other, the last one for ever."""

    base_url: str = ""
    token: str = TOKEN
    looks_until_done: int = 1  # 204 before a task's results
    replies: deque[Reply] = field(default_factory=deque)  # for the next calls, whatever they ask
    batch_faults: deque[Reply | None] = field(default_factory=deque)  # for the next batches; None: none
    results_replies: deque[Reply] = field(default_factory=deque)  # for the next looks for results
    calls: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)  # user names
    _results: defaultdict[str, deque[Any]] = field(default_factory=lambda: defaultdict(deque))
    _tasks: dict[str, str] = field(default_factory=dict)
    _looks: Counter[str] = field(default_factory=Counter)

    def order(self, username: str, *contents: Any, status: int = 200) -> None:
        """Each next question for this profile gives the next of these contents."""
        self._results[username] = deque(result(username, content, status) for content in contents)

    def client(self, *, token: str = TOKEN, pace: Pace = HURRY) -> Decodo:
        return Decodo(self.base_url, token, pace)

    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes(
            [
                web.post("/v2/scrape", self._scrape),
                web.post("/v3/task/batch", self._batch),
                web.get("/v3/task/{task}/results", self._get_results),
            ]
        )
        return application

    async def _scrape(self, request: web.Request) -> web.Response:
        if refusal := await self._refusal(request):
            return refusal
        return web.json_response({"results": [self._next_result((await request.json())["query"])]})

    async def _batch(self, request: web.Request) -> web.Response:
        if refusal := await self._refusal(request):
            return refusal
        if self.batch_faults and (fault := self.batch_faults.popleft()):
            return fault.response()
        names = (await request.json())["query"]
        tasks = {f"{7_434_928_397_127_555_073 + len(self._tasks) + place}": name for place, name in enumerate(names)}
        self._tasks |= tasks
        queries = [{"id": task, "target": TARGET, "query": name, "status": "pending"} for task, name in tasks.items()]
        return web.json_response({"id": "7434928397127555000", "queries": queries}, status=201)

    async def _get_results(self, request: web.Request) -> web.Response:
        task = request.match_info["task"]
        if refusal := await self._refusal(request):
            return refusal
        if self.results_replies:
            return self.results_replies.popleft().response()
        self._looks[task] += 1
        if self._looks[task] <= self.looks_until_done:
            return web.Response(status=204)
        return web.json_response({"results": [self._next_result(self._tasks[task])]})

    async def _refusal(self, request: web.Request) -> web.Response | None:
        self.calls.append(f"{request.method} {request.path}")
        if self.replies:
            return self.replies.popleft().response()
        if request.headers.get("Authorization") != f"Basic {self.token}":
            return web.json_response({"status": "failed", "message": "Unauthorized"}, status=401)
        if request.method == "POST" and (await request.json()).get("target") != TARGET:
            return web.json_response({"status": "failed", "message": "Unknown target"}, status=422)
        return None

    def _next_result(self, username: str) -> Any:
        self.asked[username] += 1
        results = self._results[username]
        if not results:
            return result(username, {"data": {"user": None}, "status": "ok"})
        return results[0] if len(results) == 1 else results.popleft()


def result(username: str, content: Any, status: int = 200) -> dict[str, Any]:
    """One of an envelope's `results`."""
    return {
        "content": content,
        "headers": {},
        "cookies": [],
        "status_code": status,
        "query": username,
        "task_id": "7434928397127555073",
        "created_at": "2026-11-21 12:00:00",
        "updated_at": "2026-11-21 12:00:07",
    }


def profile_page(user: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a result: Instagram's answer."""
    return {"data": {"user": dict(user)}, "status": "ok"}


def url(name: str, stp: str = "dst-jpg_e35") -> str:
    return f"https://scontent.cdninstagram.com/v/t51.2885-15/{name}_n.jpg?stp={stp}&oe=6A84BC6E&oh=00_Af"


def user(**changes: Any) -> dict[str, Any]:
    """A profile with an avatar, a post, and a carousel whose first child is the post's own picture."""
    nodes = [
        {"id": "11", "display_url": url("a"), "thumbnail_src": url("a", "c0.1.2.2a_s640x640"), "is_video": False},
        {
            "id": "12",
            "display_url": url("b"),
            "edge_sidecar_to_children": {
                "edges": [
                    {"node": {"id": "121", "display_url": url("b")}},
                    {"node": {"id": "122", "display_url": url("c")}},
                ]
            },
        },
    ]
    return {
        "username": "Nba",
        "is_private": False,
        "profile_pic_url": url("me", "dst-jpg_s150x150"),
        "profile_pic_url_hd": url("me"),
        "edge_owner_to_timeline_media": {"count": 2, "edges": [{"node": node} for node in nodes]},
        **changes,
    }


def user_of_rows(engine: Engine, signer: Signer, profile_id: Any, expires_at: datetime) -> dict[str, Any]:
    """The profile as Instagram would show it now: the pictures of the demo's rows, their URLs signed again."""
    with engine.connect() as connection:
        profile = connection.execute(select(profiles_table).where(profiles_table.c.id == profile_id)).mappings().one()
        of_profile = select(posts_table).where(posts_table.c.profile_id == profile_id)
        posts: Sequence[Any] = connection.execute(of_profile).mappings().all()

    def fresh(url: str | None) -> str | None:
        return url and signer.sign_again(url, expires_at)

    def node(post: Any) -> dict[str, Any]:
        children = post["sidecar_children"] or []
        edges = children["edges"] if isinstance(children, dict) else [{"node": child} for child in children]
        again = [{"node": edge["node"] | {"display_url": fresh(edge["node"]["display_url"])}} for edge in edges]
        return {
            "__typename": "GraphSidecar" if edges else "GraphImage",
            "id": post["media_id"],
            "display_url": fresh(post["display_url"]),
            "thumbnail_src": fresh(post["thumbnail_src"]),
            "taken_at_timestamp": int(post["taken_at"].timestamp()),
            "edge_sidecar_to_children": {"edges": again},
        }

    return {
        "username": profile["username"],
        "is_private": False,
        "profile_pic_url": fresh(profile["profile_pic_url"]),
        "profile_pic_url_hd": fresh(profile["profile_pic_url_hd"]),
        "edge_owner_to_timeline_media": {"count": len(posts), "edges": [{"node": node(post)} for post in posts]},
    }


def kill_urls(engine: Engine, died: datetime) -> None:
    """The demo's rows as if nobody had fetched them again since their URLs died."""
    expiry = f"oe={int(died.timestamp()):X}"
    columns = {
        profiles_table: ("profile_pic_url", "profile_pic_url_hd"),
        posts_table: ("display_url", "thumbnail_src", "sidecar_children"),
    }
    with engine.begin() as connection:
        for table, names in columns.items():
            for row in connection.execute(select(table)).mappings().all():
                dead = {name: json.loads(re.sub("oe=[0-9A-F]+", expiry, json.dumps(row[name]))) for name in names}
                connection.execute(table.update().where(table.c.id == row["id"]).values(dead))


@contextlib.contextmanager
def running_decodo() -> Iterator[DecodoService]:
    """The stand-in, in a thread of this process on a free port."""
    service = DecodoService()
    with in_thread(listening(service.application())) as service.base_url:
        yield service
