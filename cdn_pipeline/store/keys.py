"""The one place where object keys, CDN paths and public URLs are made."""

import re
import uuid
from dataclasses import dataclass

ORIGINALS = "originals"  # where their keys begin
MAX_KEY_BYTES = 1024  # R2's and S3's limit
TOMBSTONES = "tombstones"  # what keeps erased images out, in the store of originals; clean-up leaves it alone

_COMPONENT = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EXTENSION = re.compile(r"[a-z0-9]{1,5}")
_HASH_DIGITS = 16  # 64 bits tell apart the few versions that one size of one image will ever have
_RENDITION = re.compile(
    rf"({_COMPONENT.pattern})/({_COMPONENT.pattern})/({_COMPONENT.pattern})"
    rf"/([0-9a-f]{{{_HASH_DIGITS}}})\.({_EXTENSION.pattern})"
)


def rendition_key(prefix: str, owner_id: str, media_id: str, size: str, sha256: str, extension: str) -> str:
    """The key of a rendition: `{prefix}/{owner_id}/{media_id}/{size}/{first 16 digits of sha256}.{extension}`.

    Args:
        prefix: the collection's, such as `th/ig`.
        owner_id: the owner's opaque id; never a user name, because keys are public and names change.
        media_id: the image's id among its owner's.
        size: the name of the recipe's size, such as `256`.
        sha256: of the rendition's own bytes, 64 lower-case hex digits.
        extension: without a dot, such as `webp`; CDNs decide by it what they cache.

    Raises:
        ValueError: a part is not `[A-Za-z0-9_-]{1,100}` (so no dot, no slash), or the key is longer than 1,024 bytes.
    """
    _require(_COMPONENT, size, "key component")
    _require(_EXTENSION, extension, "extension")
    _require(_SHA256, sha256, "SHA-256")
    key = f"{renditions_prefix(prefix, owner_id, media_id)}/{size}/{sha256[:_HASH_DIGITS]}.{extension}"
    if len(key) > MAX_KEY_BYTES:
        raise ValueError(f"a key has at most {MAX_KEY_BYTES} bytes, not {len(key)}: {key[:100]}…")
    return key


@dataclass(frozen=True, slots=True)
class RenditionName:
    """What the key of a rendition says; `hash_digits` begin the SHA-256 of its bytes."""

    owner_id: str
    media_id: str
    size: str
    hash_digits: str
    extension: str


def rendition_named(prefix: str, key: str) -> RenditionName | None:
    """What a key under the collection's prefix says; None if it is not a rendition's."""
    found = re.fullmatch(rf"{re.escape(prefix)}/{_RENDITION.pattern}", key)
    return RenditionName(*found.groups()) if found else None


def renditions_prefix(prefix: str, owner_id: str, media_id: str | None = None) -> str:
    """What the keys of an owner's renditions begin with, or those of one image's; without a slash at the end.

    Raises:
        ValueError: a part is not `[A-Za-z0-9_-]{1,100}`; an empty one would mean everybody.
    """
    components = [*prefix.split("/"), owner_id, *([] if media_id is None else [media_id])]
    for component in components:
        _require(_COMPONENT, component, "key component")
    return "/".join(components)


def original_key(sha256: str) -> str:
    """The key of an original: its content's hash, fanned out so that no folder holds more than a few thousand.

    Raises:
        ValueError: not 64 lower-case hex digits.
    """
    _require(_SHA256, sha256, "SHA-256")
    return f"{ORIGINALS}/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def sha256_of(key: str) -> str | None:
    """The SHA-256 of the original under this key; None if it is no original's key."""
    sha256 = key.rpartition("/")[2]
    return sha256 if _SHA256.fullmatch(sha256) and key == original_key(sha256) else None


def tombstone_key(tombstone_id: uuid.UUID) -> str:
    """The key of a tombstone's copy, in the store of originals."""
    return f"{TOMBSTONES}/{tombstone_id}.json"


def path_of(key: str) -> str:
    """The CDN path of a key: the key with a leading slash, as `cdn_path_*` has it.

    Raises:
        ValueError: the key is empty or a path already.
    """
    if not key or key.startswith("/"):
        raise ValueError(f"not a key: {key!r}")
    return f"/{key}"


def public_url(base_url: str, key: str) -> str:
    """The URL under which the CDN serves a key; `base_url` with or without a trailing slash.

    Raises:
        ValueError: the key is empty or a path already.
    """
    return base_url.rstrip("/") + path_of(key)


def _require(pattern: re.Pattern[str], value: str, what: str) -> None:
    if not pattern.fullmatch(value):
        raise ValueError(f"not a {what} ({pattern.pattern}): {value[:120]!r}")
