"""What can go wrong with an image: one table of kinds, from which jobs, checks and docs take their words."""

from dataclasses import dataclass
from enum import StrEnum


class Remedy(StrEnum):
    """What makes the next attempt worth making."""

    TRANSIENT = "transient"  # the same URL, later
    FRESH_URL = "fresh_url"  # the same image, once its source row carries another URL
    PERMANENT = "permanent"  # another picture, another recipe or an operator


class Blame(StrEnum):
    """Where an operator looks first."""

    SOURCE = "source"
    US = "us"
    INFRASTRUCTURE = "infrastructure"


class FailureKind(StrEnum):
    """The kinds of failure; the value is what the catalog stores."""

    SOURCE_URL_404 = "source_url_404"
    SOURCE_GONE = "source_gone"
    SOURCE_URL_EXPIRED = "source_url_expired"
    SIGNATURE_MISMATCH = "signature_mismatch"
    SOURCE_FORBIDDEN = "source_forbidden"
    SOURCE_ERROR = "source_error"
    RATE_LIMITED = "rate_limited"
    DOWNLOAD_TIMEOUT = "download_timeout"
    CONNECTION_FAILED = "connection_failed"
    TRUNCATED_DOWNLOAD = "truncated_download"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    BLOCKED_ADDRESS = "blocked_address"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    IMAGE_CORRUPT = "image_corrupt"
    IMAGE_TOO_LARGE = "image_too_large"
    TRANSCODE_TIMEOUT = "transcode_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_DIED = "worker_died"
    IMAGE_TIMEOUT = "image_timeout"
    UPLOAD_FAILED = "upload_failed"
    STORE_UNAVAILABLE = "store_unavailable"
    CATALOG_UNAVAILABLE = "catalog_unavailable"
    ORIGINAL_MISSING = "original_missing"
    INTERNAL_ERROR = "internal_error"

    @classmethod
    def of(cls, name: str | None) -> "FailureKind | None":
        """The kind that the catalog names; None: it names none, or one that only another version of the code knows."""
        try:
            return cls(name or "")
        except ValueError:
            return None

    @property
    def remedy(self) -> Remedy:
        """What makes the next attempt worth making."""
        return _TABLE[self].remedy

    @property
    def blame(self) -> Blame:
        """Where an operator looks first."""
        return _TABLE[self].blame

    @property
    def advice(self) -> str:
        """What an operator should do, as one sentence."""
        return _TABLE[self].advice


@dataclass(frozen=True, slots=True)
class _Entry:
    remedy: Remedy
    blame: Blame
    advice: str


_WAIT_FOR_URL = "Nothing, unless it lasts: the image heals when a fresh URL comes."
_REFUSED = "Look at the host if many images share it; the night tries again, and a fresh URL heals the image."
_RETRIED = "Nothing: it is tried again by itself; look at the host if many images share it."

_TABLE: dict[FailureKind, _Entry] = {
    FailureKind.SOURCE_URL_404: _Entry(Remedy.FRESH_URL, Blame.SOURCE, _WAIT_FOR_URL),
    FailureKind.SOURCE_GONE: _Entry(
        Remedy.PERMANENT,
        Blame.SOURCE,
        "The source deleted the picture: a fresh URL gave 404, too. Leave it (what was published stays), or refresh "
        "the profile: another picture in its place comes by itself.",
    ),
    FailureKind.SOURCE_URL_EXPIRED: _Entry(Remedy.FRESH_URL, Blame.SOURCE, _WAIT_FOR_URL),
    FailureKind.SIGNATURE_MISMATCH: _Entry(
        Remedy.FRESH_URL, Blame.SOURCE, "Check that whoever writes the source rows stores URLs unchanged."
    ),
    FailureKind.SOURCE_FORBIDDEN: _Entry(Remedy.FRESH_URL, Blame.SOURCE, _REFUSED),
    FailureKind.SOURCE_ERROR: _Entry(Remedy.TRANSIENT, Blame.SOURCE, _RETRIED),
    FailureKind.RATE_LIMITED: _Entry(
        Remedy.TRANSIENT, Blame.SOURCE, "Lower the request rate of this host if it goes on."
    ),
    FailureKind.DOWNLOAD_TIMEOUT: _Entry(Remedy.TRANSIENT, Blame.SOURCE, _RETRIED),
    FailureKind.CONNECTION_FAILED: _Entry(
        Remedy.TRANSIENT, Blame.INFRASTRUCTURE, "Check DNS and the way out of this machine."
    ),
    FailureKind.TRUNCATED_DOWNLOAD: _Entry(Remedy.TRANSIENT, Blame.SOURCE, _RETRIED),
    FailureKind.TOO_MANY_REDIRECTS: _Entry(Remedy.FRESH_URL, Blame.SOURCE, _REFUSED),
    FailureKind.BLOCKED_ADDRESS: _Entry(
        Remedy.FRESH_URL,
        Blame.SOURCE,
        "The URL leads to a private address or a port that is not allowed; "
        "if that is meant, name the network in DOWNLOAD_ALLOWED_NETWORKS.",
    ),
    FailureKind.NOT_AN_IMAGE: _Entry(
        Remedy.FRESH_URL, Blame.SOURCE, "The host answered with something else, often a login page."
    ),
    FailureKind.UNSUPPORTED_FORMAT: _Entry(
        Remedy.PERMANENT, Blame.US, "Allow the format in cdn_pipeline.media.decode if it is wanted."
    ),
    FailureKind.IMAGE_CORRUPT: _Entry(
        Remedy.PERMANENT,
        Blame.SOURCE,
        "The bytes arrived whole but do not decode; look at the stored original.",
    ),
    FailureKind.IMAGE_TOO_LARGE: _Entry(
        Remedy.PERMANENT, Blame.SOURCE, "Raise the byte or pixel limit only if such pictures are expected."
    ),
    FailureKind.TRANSCODE_TIMEOUT: _Entry(
        Remedy.PERMANENT, Blame.SOURCE, "Look at the picture: decoding it takes too long."
    ),
    FailureKind.OUT_OF_MEMORY: _Entry(
        Remedy.PERMANENT, Blame.SOURCE, "Look at the picture: decoding it wants too much memory."
    ),
    FailureKind.WORKER_DIED: _Entry(
        Remedy.TRANSIENT, Blame.US, "Report it: this picture ends the process that decodes it."
    ),
    FailureKind.IMAGE_TIMEOUT: _Entry(Remedy.TRANSIENT, Blame.US, "Look at the slowest stage of this run."),
    FailureKind.UPLOAD_FAILED: _Entry(
        Remedy.TRANSIENT, Blame.INFRASTRUCTURE, "Check the object store: reachable, writable, not full."
    ),
    FailureKind.STORE_UNAVAILABLE: _Entry(
        Remedy.TRANSIENT,
        Blame.INFRASTRUCTURE,
        "Bring the object store back: reachable, writable, not full; nothing is lost, and the next run does the rest.",
    ),
    FailureKind.CATALOG_UNAVAILABLE: _Entry(
        Remedy.TRANSIENT,
        Blame.INFRASTRUCTURE,
        "Bring the catalog's Postgres back; nothing is lost, and the next run does the rest.",
    ),
    FailureKind.INTERNAL_ERROR: _Entry(
        Remedy.TRANSIENT,
        Blame.US,
        "Report it with the traceback from the run's log: the code did not expect this.",
    ),
    FailureKind.ORIGINAL_MISSING: _Entry(
        Remedy.TRANSIENT,
        Blame.INFRASTRUCTURE,
        "The store lost an original; it is downloaded again, from a fresh URL if the present one has expired.",
    ),
}


class ImageFailure(Exception):
    """One image failed, and the run goes on.

    `retry_after_seconds` is what the host asked for (`Retry-After`), if it did; `status` is the HTTP status of an
    answer that is told by nothing else.
    """

    def __init__(
        self,
        kind: FailureKind,
        detail: str = "",
        *,
        retry_after_seconds: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.status = status

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else str(self.kind)
