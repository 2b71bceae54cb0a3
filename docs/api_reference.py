"""The OpenAPI document as Markdown: each route with its parameters, its answer's fields, an example, and its errors."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from cdn_pipeline.api.app import openapi_document
from cdn_pipeline.api.document import operations

Document = dict[str, Any]

_WIDTH = 116  # of a line of an example
_SHORT = 12  # lines of an example that is not folded
_MANY = 10  # values of an enumeration that has a table of its own


def reference() -> str:
    """All routes, by tag."""
    page = _Page(openapi_document())
    return "\n\n".join(page.section(tag) for tag in page.document["tags"])


class _Page:
    """Writes routes one after another. What an object has in it is told once, where it comes first."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._schemas: Document = document["components"]["schemas"]
        self._route = ""
        self._objects_told: dict[str, tuple[str, str]] = {}  # the route and the field of each schema
        self._fields_told: dict[str, str] = {}  # the place of each field of this route, by its name and schema

    def section(self, tag: Document) -> str:
        """The routes of a tag."""
        routes = [
            self._operation(f"{method} {path}", operation)
            for method, path, operation in operations(self.document)
            if operation["tags"] == [tag["name"]]
        ]
        return "\n\n".join([f"### {tag['name'].capitalize()}", tag["description"], *routes])

    def _operation(self, route: str, operation: Document) -> str:
        self._route, self._fields_told = route, {}
        parts = [
            f"#### `{route}`",
            f"**{operation['summary']}.** {operation['description']}",
            self._parameters(operation.get("parameters", ())),
            self._request(operation),
            self._answer(operation),
            _otherwise(operation),
        ]
        return "\n\n".join(part for part in parts if part)

    def _parameters(self, parameters: list[Document]) -> str:
        rows = [
            f"| `{each['name']}` ({each['in']}) | {self._type(each['schema'])}{_limits(each['schema'])} "
            f"| {'' if each['required'] else 'Optional. '}{each['description']} |"
            for each in parameters
        ]
        return _table("parameter", rows)

    def _request(self, operation: Document) -> str:
        if "requestBody" not in operation:
            return ""
        return self._json("Body.", operation["requestBody"]["content"]["application/json"])

    def _answer(self, operation: Document) -> str:
        status = min(operation["responses"])
        ((media_type, body),) = operation["responses"][status]["content"].items()
        if media_type != "application/json":
            return f"Answer, {status}, `{media_type}`:\n\n```\n{body['example']}\n```"
        return self._json(f"Answer, {status}.", body)

    def _json(self, title: str, body: Document) -> str:
        meaning = self._meaning(body["schema"])
        fields = _table("field", list(self._rows("", body["schema"])))
        return "\n\n".join(part for part in (f"{title} {meaning}", fields, _example(body["example"])) if part)

    def _rows(self, prefix: str, schema: Document) -> Iterator[str]:
        """A row per field of the objects that a value of this schema may be or hold, and rows of what is in them."""
        for name in self._names(schema):
            if name in self._objects_told:
                continue
            self._objects_told[name] = self._route, prefix.rstrip(".")
            yield from self._rows_of_object(prefix, self._schemas[name])

    def _rows_of_object(self, prefix: str, schema: Document) -> Iterator[str]:
        inherited: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in schema["properties"].items():
            place = self._fields_told.setdefault(f"{name} {json.dumps(value)}", prefix)
            if place not in ("", prefix) and "description" in value:
                inherited[place].append(name)
                continue
            optional = "" if name in schema.get("required", ()) else "Optional. "
            yield f"| `{prefix}{name}` | {self._type(value)} | {optional}{self._meaning(value)} |"
            yield from self._rows(f"{prefix}{name}{_suffix(value)}", value)
        for place, names in inherited.items():
            yield f"| `{prefix}{'`, `'.join(names)}` | | As `{place.rstrip('.')}`. |"

    def _names(self, schema: Document) -> Iterator[str]:
        """The objects that a value of this schema may be or hold."""
        name = schema.get("$ref", "").rpartition("/")[2]
        if "properties" in self._schemas.get(name, {}):
            yield name
        for inner in (*schema.get("anyOf", ()), schema.get("items"), schema.get("additionalProperties")):
            if isinstance(inner, dict):
                yield from self._names(inner)

    def _meaning(self, schema: Document) -> str:
        objects = [
            self._place(name) if name in self._objects_told else self._schemas[name]["description"]
            for name in self._names(schema)
        ]
        return " ".join([*schema.get("description", "").split(), *" Or: ".join(objects).split()])

    def _place(self, name: str) -> str:
        route, field = self._objects_told[name]
        places = [f"`{field}`"] * bool(field) + [f"`{route}`"] * (route != self._route)
        return f"As {' of '.join(places)}."

    def _type(self, schema: Document) -> str:
        if "anyOf" in schema:
            return " or ".join(self._type(each) for each in schema["anyOf"])
        if "$ref" in schema:
            target = self._schemas[schema["$ref"].rpartition("/")[2]]
            return self._type(target) if "enum" in target else "object"
        if "enum" in schema or "const" in schema:
            values = schema.get("enum", [schema.get("const")])
            return _KIND if len(values) > _MANY else ", ".join(f"`{value}`" for value in values)
        if schema.get("type") == "array":
            return f"list of {self._type(schema['items'])}"
        return str(schema.get("format", schema.get("type", "any")))


_KIND = "[kind of failure](runbook.md#failure-kinds)"


def _suffix(schema: Document) -> str:
    """What leads from a field to the fields of its value."""
    kinds = [schema, *schema.get("anyOf", ())]
    if any(kind.get("type") == "array" for kind in kinds):
        return "[]."
    return ".*." if any(isinstance(kind.get("additionalProperties"), dict) for kind in kinds) else "."


def _limits(schema: Document) -> str:
    if "minimum" in schema:
        return f", {schema['minimum']} to {schema['maximum']}, default {schema['default']}"
    if "maxItems" in schema:
        return f", {schema['minItems']} to {schema['maxItems']}"
    return f", default `{json.dumps(schema['default'])}`" if "default" in schema else ""


def _otherwise(operation: Document) -> str:
    _, *others = sorted(operation["responses"])
    words = {status: operation["responses"][status]["description"] for status in others}
    told = [f"{status} {text[0].lower()}{text[1:].rstrip('.')}" for status, text in words.items()]
    return f"Otherwise: {'; '.join(told)}." if told else ""


def _table(subject: str, rows: list[str]) -> str:
    return "\n".join([f"| {subject} | type | meaning |", "|---|---|---|", *rows]) if rows else ""


def _example(value: Any) -> str:
    text = _json(value)
    block = f"```json\n{text}\n```"
    if text.count("\n") < _SHORT:
        return block
    return f"<details><summary>Example</summary>\n\n{block}\n\n</details>"


def _json(value: Any, indent: str = "", begin: int = 0) -> str:
    """JSON in which whatever fits into a line stands in one."""
    line = json.dumps(value, ensure_ascii=False)
    if begin + len(line) <= _WIDTH or not isinstance(value, dict | list):
        return line
    inner = indent + "  "
    if isinstance(value, list):
        items = [inner + _json(each, inner, len(inner)) for each in value]
        return "[\n" + ",\n".join(items) + f"\n{indent}]"
    keys = {f"{inner}{json.dumps(name)}: ": each for name, each in value.items()}
    items = [key + _json(each, inner, len(key)) for key, each in keys.items()]
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"
