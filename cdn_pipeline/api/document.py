"""The OpenAPI document: FastAPI's, and what FastAPI cannot be told about errors, headers, parameters and examples."""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI

from cdn_pipeline.api.problems import Problem

Document = dict[str, Any]

TAGS: list[Document] = [
    {"name": "media", "description": "A profile's pictures, for whoever shows them."},
    {"name": "health", "description": "Whether it is alive, ready and well, for load balancers and people."},
    {"name": "monitoring", "description": "How much is done, how fast, and what waits, for dashboards."},
    {"name": "admin", "description": "For operators, with the bearer token `ADMIN_API_TOKEN`."},
]


class Api(FastAPI):
    """An application whose OpenAPI document is complete."""

    def openapi(self) -> Document:
        """The document; made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _completed(super().openapi())
        return self.openapi_schema


def operation_id(route: Any) -> str:
    """The name of the route's function, which clients' generators make their methods' names of."""
    return str(route.name)


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    """(method, path, operation) of all operations, in the order of the routes."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _completed(document: Document) -> Document:
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
    document["components"]["headers"] = {"RequestId": _REQUEST_ID}
    for _, _, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _without_null(parameter["schema"])
        for response in operation["responses"].values():
            response.setdefault("headers", {})["X-Request-ID"] = {"$ref": "#/components/headers/RequestId"}
        _add_examples(operation, _examples().get(operation["operationId"], {}))
    return document


_REQUEST_ID: Document = {
    "description": "The caller's `X-Request-ID`, or one that was made: the logs have it too.",
    "required": True,
    "schema": {"type": "string"},
}


def _without_null(schema: Document) -> Document:
    """A parameter may be left out, but no URL and no header can say null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **kinds[0]}


def _add_examples(operation: Document, examples: Document) -> None:
    """`parameters` by name, `request` of the body, `answer` of the answer when all is well."""
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in examples.get("parameters", {}):
            parameter["example"] = examples["parameters"][parameter["name"]]
    if "request" in examples:
        operation["requestBody"]["content"]["application/json"]["example"] = examples["request"]
    if "answer" in examples:
        status = min(operation["responses"])
        operation["responses"][status]["content"]["application/json"]["example"] = examples["answer"]


@cache
def _examples() -> dict[str, Document]:
    """By operation id; of one small world, so that they fit together."""
    examples: dict[str, Document] = json.loads(files(__package__).joinpath("examples.json").read_text("utf-8"))
    return examples
