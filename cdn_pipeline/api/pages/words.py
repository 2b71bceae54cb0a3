"""How templates write numbers, moments and addresses; nothing here decides anything."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from cdn_pipeline.observe.shares import percent
from cdn_pipeline.observe.times import clock, distance, span
from cdn_pipeline.sources.instagram import rank_in_words

_THIN_SPACE = "\u202f"  # narrow, and no line breaks there
_NOTHING = "–"
_CODE = Markup("<code>{}</code>")


def number(value: float | None, digits: int = 0) -> str:
    """`12 345` with thin spaces."""
    return _NOTHING if value is None else f"{value:,.{digits}f}".replace(",", _THIN_SPACE)


def share(value: float | None) -> str:
    """0 to 1 as `99.9 %`, rounded down."""
    return _NOTHING if value is None else f"{number(percent(value), 1)}{_THIN_SPACE}%"


def milliseconds(value: float | None) -> str:
    """`1 234 ms`."""
    return _NOTHING if value is None else f"{number(value)}{_THIN_SPACE}ms"


def size(value: int | None) -> str:
    """Bytes as `112.4 kB`."""
    if value is None:
        return _NOTHING
    amount, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{number(amount, 0 if unit == 'B' else 1)}{_THIN_SPACE}{unit}"


def moment(value: datetime | None, now: datetime) -> Markup:
    """A moment in UTC, and how far away it is as its title."""
    return _time(value, now, clock(value) if value else "", distance(value, now) if value else "")


def ago(value: datetime | None, now: datetime) -> Markup:
    """How far away a moment is, and when it is in UTC as its title."""
    return _time(value, now, distance(value, now) if value else "", clock(value) if value else "")


def _time(value: datetime | None, now: datetime, text: str, title: str) -> Markup:
    if value is None:
        return escape(_NOTHING)
    iso = value.astimezone(UTC).isoformat(timespec="seconds")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(iso, title, text)


def lasting(value: timedelta | None) -> str:
    """`3 h`."""
    return _NOTHING if value is None else span(value)


def plain(value: object) -> str:
    """A name of the catalog as a person reads it: `source gone`."""
    return str(value).replace("_", " ")


def sentence(words: str) -> Markup:
    """With a capital letter (unless it begins with a name), a full stop, and code between backticks."""
    first = words.partition(" ")[0]
    words = f"{words[:1].upper()}{words[1:]}" if first.isalpha() else words
    ended = words if words.endswith(".") else f"{words}."
    return Markup("").join(_CODE.format(part) if inside else escape(part) for inside, part in _by_backticks(ended))


def _by_backticks(words: str) -> Iterator[tuple[bool, str]]:
    """(whether it is between backticks, the part)."""
    return ((index % 2 == 1, part) for index, part in enumerate(words.split("`")))


def without_signature(url: str) -> str:
    """A source URL without its query, which is what signs it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def rank(value: int) -> str:
    """Whether a URL gives the whole picture, and how large."""
    return rank_in_words(value, number)


FILTERS = {
    each.__name__: each
    for each in (number, share, milliseconds, size, moment, ago, lasting, plain, sentence, without_signature, rank)
}
