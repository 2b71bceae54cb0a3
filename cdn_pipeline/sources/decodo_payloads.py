"""What Decodo's answers say: a profile's pictures, or why there are none. Pure, and total over any JSON.

    {"results": [{"content": {"data": {"user": {…}}}, "status_code": 200, "query": "nba", "task_id": "…"}]}

The content is Instagram's own GraphQL answer: an object, or the same as a string of JSON, or null or "". Proxies on the
way wrap it in further `data`, and turn lists into objects with numbers for keys. Statuses stand in the HTTP answer, in
its body or in the result: 613 (the target blocked every attempt) was seen in all three places.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cdn_pipeline.sources.instagram import SourceUrl, media_key, parse
from cdn_pipeline.sources.provider import Answer, NoProfile, ProvidedImage, ProvidedProfile, Refusal

_MEDIA = ("shortcode_media", "xdt_shortcode_media")  # of one post; the second since 2024
_WRAPPERS = ("data", "graphql", "content")
_MAX_WRAPPERS = 5  # three were seen
_MAX_WORDS = 200  # characters of a message that are shown

_FAULTS = "unknown|unsupported|invalid|deprecated|disabled|not (?:supported|available|allowed|found)"
_UNKNOWN_TARGET = re.compile(
    rf"\b(?:{_FAULTS})\W+target\b|\btarget\W+(?:\S+\W+)?(?:is\s+)?(?:{_FAULTS})\b", re.IGNORECASE
)


def results_of(body: Any) -> Sequence[Mapping[str, Any]]:
    """The results of an answer's body; an older envelope is one result, and what is neither has none."""
    if not isinstance(body, dict):
        return []
    results = [result for result in _items(body.get("results")) if isinstance(result, dict)]
    if results:
        return results
    inner = body.get("data")
    return [inner] if isinstance(inner, dict) and "content" in inner else []


def tasks_of(body: Any) -> Mapping[str, str]:
    """Task ids by user name, of an answer to a batch."""
    queries = _items(body.get("queries")) if isinstance(body, dict) else []
    return {
        query["query"]: str(query["id"])
        for query in queries
        if isinstance(query, dict) and isinstance(query.get("query"), str) and isinstance(query.get("id"), str | int)
    }


def status_of(body: Any) -> int | None:
    """The status that a body or a result tells of itself, if it does."""
    status = body.get("status_code") if isinstance(body, dict) else None
    return status if isinstance(status, int) and not isinstance(status, bool) else None


def message_of(body: Any) -> str:
    """What an answer says to a person: its messages on one line, printable and shortened."""
    if not isinstance(body, dict):
        return ""
    errors = [error.get("message") if isinstance(error, dict) else error for error in _items(body.get("errors"))]
    words = [words for words in (body.get("message"), *errors) if isinstance(words, str)]
    line = " ".join("; ".join(words).split())
    return "".join(character for character in line if character.isprintable())[:_MAX_WORDS]


def names_unknown_target(message: str) -> bool:
    """Whether a message says that this kind of question is not offered."""
    return bool(_UNKNOWN_TARGET.search(message))


def read_body(body: Any, username: str) -> Answer:
    """The answer that the body of an answer about `username` alone is."""
    for result in results_of(body):
        return read_result(result, username)
    if (status := status_of(body)) is not None:
        return _of_status(username, status, message_of(body))
    return NoProfile(username, Refusal.EMPTY, message_of(body) or "an answer without results")


def read_result(result: Mapping[str, Any], username: str) -> Answer:
    """The answer that one result about `username` is."""
    status = status_of(result)
    content = _content(result.get("content"))
    if status is not None and status not in (200, 12000):  # 12000: the older envelope's success
        return _of_status(username, status, message_of(content))
    if content is None:
        return NoProfile(username, Refusal.EMPTY, "an answer without content")
    if not isinstance(content, dict):
        return NoProfile(username, Refusal.UNREADABLE, "the content is no object of JSON")
    return _read_content(content, username)


def _of_status(username: str, status: int, message: str) -> NoProfile:
    detail = f"status {status}{f': {message}' if message else ''}"
    if status in (404, 410):
        return NoProfile(username, Refusal.GONE, detail)
    return NoProfile(username, Refusal.BLOCKED, detail)


def _content(content: Any) -> Any:
    """The content as JSON; None if there is none, and a string that is no JSON stays one."""
    if not isinstance(content, str):
        return content
    if not content.strip():
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content


def _read_content(content: Mapping[str, Any], username: str) -> Answer:
    for _ in range(_MAX_WRAPPERS):
        if "user" in content:
            return _read_user(content["user"], username)
        if media := next((content[name] for name in _MEDIA if isinstance(content.get(name), dict)), None):
            return _profile(username, media.get("owner"), _post(media))
        wrapped = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), dict)), None)
        if wrapped is None:
            break
        content = wrapped
    words = message_of(content)
    if content.get("require_login") is True or content.get("status") == "fail":
        return NoProfile(username, Refusal.BLOCKED, words or "Instagram wants a login")
    return NoProfile(username, Refusal.UNREADABLE, words or "the content is no profile")


def _read_user(user: Any, username: str) -> Answer:
    if not user:
        return NoProfile(username, Refusal.EMPTY, "no such user, or none this time")
    if not isinstance(user, dict):
        return NoProfile(username, Refusal.UNREADABLE, "the user is no object")
    if user.get("is_private") is True:
        return NoProfile(username, Refusal.PRIVATE)
    timeline = [image for node in _nodes(user.get("edge_owner_to_timeline_media")) for image in _post(node)]
    return _profile(username, user, [*_avatar(user), *timeline])


def _profile(username: str, named: Any, images: Sequence[ProvidedImage]) -> Answer:
    """The profile, if it is the one that was asked for: another one's avatar would be taken for this one's."""
    name = named.get("username") if isinstance(named, dict) else None
    if isinstance(name, str) and name.casefold() != username.casefold():
        return NoProfile(username, Refusal.UNREADABLE, "the answer is another profile's")
    if not images:
        return NoProfile(username, Refusal.EMPTY, "a profile without pictures")
    return ProvidedProfile(username, tuple(images))


def _avatar(user: Mapping[str, Any]) -> Sequence[ProvidedImage]:
    return _image("profile_avatar", "avatar", user, "profile_pic_url_hd", "profile_pic_url")


def _post(node: Mapping[str, Any]) -> Sequence[ProvidedImage]:
    """A post and the children of its carousel; one that shows the post's own picture is no second image.

    The same fields as a source row has, and not the larger `display_resources`: a better rank is a change, and every
    picture would be downloaded again.
    """
    posts = _image("post_thumbnail", node.get("id"), node, "display_url", "thumbnail_src")
    own = {url.identity for post in posts for url in post.candidates}
    children = [
        child
        for child_node in _nodes(node.get("edge_sidecar_to_children"))
        for child in _image("post_carousel", child_node.get("id"), child_node, "display_url")
        if child.candidates[0].identity not in own
    ]
    return [*posts, *children]


def _image(source_type: str, media_id: Any, node: Mapping[str, Any], *fields: str) -> Sequence[ProvidedImage]:
    """None or one."""
    urls = tuple(url for field in fields for url in _urls(node.get(field)))
    if not urls or not media_id or isinstance(media_id, bool) or not isinstance(media_id, str | int):
        return []
    return [ProvidedImage(source_type, media_key(str(media_id)), urls)]


def _urls(raw: Any) -> Iterator[SourceUrl]:
    if isinstance(raw, str) and raw.strip():
        try:
            yield parse(raw)
        except ValueError:
            return


def _nodes(connection: Any) -> Iterator[Mapping[str, Any]]:
    """The nodes of `{"edges": [{"node": …}]}`, or of a plain list."""
    edges = connection.get("edges") if isinstance(connection, dict) else connection
    for edge in _items(edges):
        node = edge.get("node", edge) if isinstance(edge, dict) else None
        if isinstance(node, dict):
            yield node


def _items(value: Any) -> Sequence[Any]:
    """A list, also one that a proxy turned into an object."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
