"""A model of the source: which picture each image shows, under which URLs, and what their host answers."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum, auto
from functools import cache
from io import BytesIO

from PIL import Image

from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.fetch.body import BodyRoom
from cdn_pipeline.fetch.client import Download, NotModified
from cdn_pipeline.sources.discovery import ImageKey, ImageReference
from cdn_pipeline.sources.instagram import SourceUrl

LESSER, BEST = 150, 1080  # the ranks that each picture can be had in

IMAGES = {
    "avatar": ("00", ImageKey("profile_avatar", "profile", "avatar")),
    "post": ("01", ImageKey("post_thumbnail", "post", "3141")),
}


class Which(StrEnum):
    """Which picture an image shows next."""

    SAME = auto()
    ANOTHER = auto()  # that it never showed
    EARLIER = auto()


class Answer(StrEnum):
    """What the host makes of a request for a picture under a living URL."""

    WHOLE = auto()
    NOT_FOUND = auto()
    SERVER_ERROR = auto()
    BUSY = auto()
    CUT_OFF = auto()
    LOGIN_PAGE = auto()
    BROKEN_FILE = auto()
    GONE = auto()  # a 404 for ever, in every rank


_FAILURES = {
    Answer.NOT_FOUND: ImageFailure(FailureKind.SOURCE_URL_404),
    Answer.GONE: ImageFailure(FailureKind.SOURCE_URL_404),
    Answer.SERVER_ERROR: ImageFailure(FailureKind.SOURCE_ERROR),
    Answer.BUSY: ImageFailure(FailureKind.RATE_LIMITED, retry_after_seconds=600),
    Answer.CUT_OFF: ImageFailure(FailureKind.TRUNCATED_DOWNLOAD),
    Answer.LOGIN_PAGE: ImageFailure(FailureKind.NOT_AN_IMAGE),
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One rank of one picture, in one of its editions: some hosts replace a picture under its old URL."""

    identity: str
    rank: int
    edition: int = 0

    @property
    def data(self) -> bytes:
        """A small PNG of its own."""
        return _png(f"{self.identity} {self.rank} {self.edition}")

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@cache
def _png(name: str) -> bytes:
    colour = hashlib.sha256(name.encode()).digest()[:3]
    buffer = BytesIO()
    Image.new("RGB", (12, 12), tuple(colour)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(slots=True)
class Source:
    """What rows say and what the host answers. `rows` are all that there ever were, latest last."""

    rows: dict[str, list[ImageReference]] = field(default_factory=lambda: {image: [] for image in IMAGES})
    pictures: dict[str, Picture] = field(default_factory=dict)  # by the SHA-256 of what the host has sent
    gone: set[str] = field(default_factory=set)  # identities
    _shown: dict[str, int] = field(default_factory=lambda: dict.fromkeys(IMAGES, 0))
    _answers: dict[tuple[str, int], Answer] = field(default_factory=dict)  # by identity and rank
    _editions: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _urls: dict[str, SourceUrl] = field(default_factory=dict)

    def identity(self, image: str) -> str:
        """Of the picture that the image shows. A post's is its URL, which does not tell one edition from another."""
        return f"{'url' if image == 'post' else 'file'}:{image}{self._shown[image]}"

    def show(self, image: str, which: Which) -> None:
        """From now on the image shows this picture."""
        match which:
            case Which.ANOTHER:
                self._shown[image] = len(self.rows[image])
            case Which.EARLIER:
                self._shown[image] = max(self._shown[image] - 1, 0)

    def sign(self, image: str, ranks: tuple[int, ...], lives: timedelta, now: datetime) -> ImageReference:
        """A new row for the picture that the image shows, with URLs that were never seen before."""
        shard, key = IMAGES[image]
        urls = tuple(self._url(self.identity(image), rank, now + lives) for rank in sorted(ranks, reverse=True))
        row = ImageReference(key, "owner", shard, None, urls, observed_at=now)
        self.rows[image].append(row)
        return row

    def _url(self, identity: str, rank: int, expires_at: datetime) -> SourceUrl:
        text = f"https://origin.example/{len(self._urls)}/{identity}/{rank}"
        self._urls[text] = SourceUrl(text, identity, rank, expires_at)
        return self._urls[text]

    def newest(self, identity: str, rank: int) -> Picture:
        """The present edition."""
        return Picture(identity, rank, self._editions[identity])

    def replace_in_place(self, image: str) -> None:
        """Puts another edition of the picture under the same URLs, if URLs are all that names it."""
        if self.identity(image).startswith("url:"):
            self._editions[self.identity(image)] += 1

    def answer(self, image: str, rank: int, answer: Answer) -> None:
        """What the host answers from now on for the picture that the image shows."""
        self._answers[self.identity(image), rank] = answer
        if answer is Answer.GONE:
            self.gone.add(self.identity(image))

    def recover(self) -> None:
        """All that is not gone is well again."""
        self._answers.clear()

    def answer_to(self, url: str, now: datetime) -> bytes:
        """The bytes behind a URL.

        Raises:
            ImageFailure: as the download of it would.
        """
        signed = self._urls[url]
        if signed.expires_at is not None and signed.expires_at <= now:
            raise ImageFailure(FailureKind.SOURCE_URL_EXPIRED)
        answer = self._answers.get((signed.identity, signed.rank), Answer.WHOLE)
        if signed.identity in self.gone:
            answer = Answer.GONE
        if answer in _FAILURES:
            raise _FAILURES[answer]
        picture = self.newest(signed.identity, signed.rank)
        self.pictures[picture.sha256] = picture
        return picture.data if answer is Answer.WHOLE else picture.data[: len(picture.data) // 2]


@dataclass(frozen=True, slots=True)
class Host:
    """Stands in for the downloader: answers from the model, and conditionally as a CDN does."""

    source: Source

    async def download(
        self, url: str, *, room: BodyRoom | None = None, etag: str | None = None, last_modified: str | None = None
    ) -> Download | NotModified:
        data = self.source.answer_to(url, datetime.now(UTC))
        validator = f'"{hashlib.md5(data).hexdigest()}"'
        if etag == validator:
            return NotModified(milliseconds=1)
        return Download(data, 200, "image/png", validator, last_modified, url, milliseconds=1)
