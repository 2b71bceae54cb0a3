"""The children of a carousel, in the shapes in which source rows hold them. Pure, and total over any text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_TEXT = 256 * 1024  # characters; twenty children with all their sizes have 100,000
MAX_CHILDREN = 50  # Instagram's own limit is twenty


@dataclass(frozen=True, slots=True)
class Children:
    """The nodes that are children of a post, and what was wrong: a kind and words that follow the row's name."""

    nodes: Sequence[Mapping[str, Any]] = ()
    problem: tuple[str, str] | None = None


def read_children(text: str | None) -> Children:
    """Reads `sidecar_children`: a list of nodes or `{"edges": [{"node": …}]}`, or a JSON string that holds either."""
    if text is None:
        return Children()
    if len(text) > MAX_TEXT:
        return _bad(f"of more than {MAX_TEXT:,} characters")
    try:
        children = json.loads(text)
        if isinstance(children, str):
            children = json.loads(children)
    except (ValueError, RecursionError):
        return _bad("that are no JSON")
    nodes = _nodes(children)
    good = [node for node in nodes if isinstance(node, dict)]
    if len(good) > MAX_CHILDREN:
        words = f"has {len(good):,} sidecar_children, of which {MAX_CHILDREN} count"
        return Children(good[:MAX_CHILDREN], ("too_many_children", words))
    if len(good) < len(nodes):
        return _bad("that are no nodes", good)
    return Children(good)


def _bad(what: str, nodes: Sequence[Mapping[str, Any]] = ()) -> Children:
    return Children(nodes, ("bad_sidecar_children", f"has sidecar_children {what}"))


def _nodes(children: Any) -> Sequence[Any]:
    """The children of a carousel; what is no list of nodes counts as one that is none."""
    if isinstance(children, dict):
        edges = children.get("edges")
        if isinstance(edges, dict):  # some proxies turn arrays into objects
            edges = list(edges.values())
        if isinstance(edges, list):
            edges = [edge.get("node") if isinstance(edge, dict) else edge for edge in edges]
        children = edges
    if children is None:
        return []
    return children if isinstance(children, list) else [children]
