"""Decoding: bytes nobody vouches for in, upright sRGB pixels out, or an `ImageFailure`.

The allow list, the limits and the treatment of orientation, colour and alpha live here. Not here: sizes and encoding
(`transcode`), and time and memory limits, which only the process around a decoder can keep.
"""

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from io import BytesIO
from itertools import product

# Imported by name so that a worker has its codecs before its first image. TIFF is what EXIF is parsed with.
from PIL import (
    AvifImagePlugin,
    ExifTags,
    Image,
    ImageChops,
    ImageCms,
    ImageFile,
    PngImagePlugin,
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,
)

from cdn_pipeline.failures import FailureKind, ImageFailure

Image.preinit()  # JPEG, PNG, GIF
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a worker has one core; more threads only cost memory

MAX_PIXELS = 50_000_000
"""Largest picture that is decoded: 200 MB as RGB or RGBA, both four bytes per pixel in Pillow."""

MAX_SIDE = 65_535
"""Longest side that is decoded, in pixels: what a JPEG can have."""

MAX_JPEG_SCANS = 500
"""A progressive JPEG has about ten scans. 100 KB can claim 5,000, each a pass over all pixels: 5 s for 16 megapixels.

Scans are counted by their marker, which a video that a phone appends holds by chance once in 64 KB.
"""

MAX_PROFILE_BYTES = 4 * 2**20
"""Larger ICC profiles are ignored; real ones end at about 3 MB (CMYK)."""

REDUCING_GAP = 3
"""Shrink on load leaves at least this many times the pixels of the largest rendition to Lanczos, per side.

Against a full decode: 54-57 dB on photographs, 46 dB on a scene prone to moiré; a gap of 2 falls to 37 dB there.
"""


class ImageFormat(StrEnum):
    """Image formats we can tell apart; `DECODABLE` says which are decoded. The value is what the catalog stores."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    GIF = "gif"
    AVIF = "avif"
    HEIC = "heic"
    JPEG_XL = "jxl"
    JPEG_2000 = "jp2"
    TIFF = "tiff"
    BMP = "bmp"
    ICO = "ico"
    PSD = "psd"


DECODABLE = frozenset({ImageFormat.JPEG, ImageFormat.PNG, ImageFormat.WEBP, ImageFormat.GIF, ImageFormat.AVIF})
"""The allow list. HEIC would need pillow-heif, an optional extra."""

# AVIF stands before HEIC: a file may name the generic brands of both (mif1, msf1) as well as its own.
_MAGIC = {
    image_format: re.compile(magic, re.DOTALL)
    for image_format, magic in {
        ImageFormat.JPEG: rb"\xff\xd8\xff",
        ImageFormat.PNG: rb"\x89PNG\r\n\x1a\n",
        ImageFormat.WEBP: rb"RIFF.{4}WEBP",
        ImageFormat.GIF: rb"GIF8[79]a",
        ImageFormat.AVIF: rb".{4}ftyp(?:.{4})*?avi[fs]",
        ImageFormat.HEIC: rb".{4}ftyp(?:.{4})*?(?:hei[cxms]|hev[cxms]|mif1|msf1)",
        ImageFormat.JPEG_XL: rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
        ImageFormat.JPEG_2000: rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
        ImageFormat.TIFF: rb"II\*\0|MM\0\*",
        ImageFormat.BMP: rb"BM.{4}\0{4}",
        ImageFormat.ICO: rb"\0\0\x01\0[^\0]\0",
        ImageFormat.PSD: rb"8BPS\0\x01",
    }.items()
}
_HEAD_BYTES = 64

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True, slots=True)
class Decoded:
    """An original as upright sRGB pixels.

    `width` and `height` are the original's, upright. `image` has mode RGB, or RGBA if anything is transparent, and no
    metadata; after shrink on load it has fewer pixels, of which `box` (left, top, right, bottom; with fractions) are
    the picture: resize that box.
    """

    format: ImageFormat
    width: int
    height: int
    image: Image.Image
    box: tuple[float, float, float, float]


def sniff(head: bytes) -> ImageFormat | None:
    """The format that the first bytes (32 suffice) tell by their magic, or None.

    SVG has no magic and comes out as None, like any other text.
    """
    head = head[:_HEAD_BYTES]
    return next((image_format for image_format, magic in _MAGIC.items() if magic.match(head)), None)


@contextmanager
def _guarded() -> Iterator[None]:
    """Turns all that hostile bytes make Pillow raise into an `ImageFailure`, and keeps its warnings quiet."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except ImageFailure:
        raise
    except MemoryError as error:
        raise ImageFailure(FailureKind.OUT_OF_MEMORY, "while decoding") from error
    except Image.DecompressionBombError as error:
        raise ImageFailure(FailureKind.IMAGE_TOO_LARGE, str(error)) from error
    except UnidentifiedImageError as error:  # its text has the address of a buffer
        raise ImageFailure(FailureKind.IMAGE_CORRUPT, "unreadable header") from error
    except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, zlib.error …
        raise ImageFailure(FailureKind.IMAGE_CORRUPT, f"{type(error).__name__}: {error}"[:200]) from error


@contextmanager
def _pillow_limited(max_pixels: int) -> Iterator[None]:
    """Has Pillow itself refuse larger pictures: its WebP plugin takes 8 bytes per pixel as it opens a file."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels // 2  # it warns from there and raises beyond twice that
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@_guarded()
def open_checked(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    """The image with its header read and no pixel decoded.

    Raises `ImageFailure`: NOT_AN_IMAGE, UNSUPPORTED_FORMAT, IMAGE_TOO_LARGE, or IMAGE_CORRUPT for a broken header.
    Frames are not counted: only the first is ever decoded, and counting those of a GIF reads the whole file.
    """
    image_format = _decodable_format(data)
    if image_format is ImageFormat.JPEG and (scans := data.count(b"\xff\xda")) > MAX_JPEG_SCANS:
        raise ImageFailure(FailureKind.IMAGE_CORRUPT, f"{scans} JPEG scans")
    with _pillow_limited(max_pixels):
        image = Image.open(BytesIO(data), formats=[image_format.name])
    if image.width * image.height > max_pixels or max(image.size) > MAX_SIDE:
        raise ImageFailure(FailureKind.IMAGE_TOO_LARGE, f"{image.width}x{image.height}")
    return image


@_guarded()
def decode(data: bytes, *, longest_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Decoded:
    """The first frame, upright and in sRGB.

    `longest_side` (pixels) says that nothing larger will be made of it, so that a JPEG may be shrunk on load to
    `REDUCING_GAP` times that. A picture of more than `max_pixels` and truncated data are refused. Raises
    `ImageFailure`: all of `open_checked`, IMAGE_CORRUPT, OUT_OF_MEMORY.
    """
    opened = open_checked(data, max_pixels=max_pixels)
    width, height = opened.size
    box_width, box_height = _shrink_on_load(opened, longest_side)
    _load_first_frame(opened)
    orientation = _orientation(opened)
    image = _without_decoder(opened)
    del opened  # and with it 8 of the 12 bytes per pixel that a WebP holds
    pixels = _to_srgb(image)
    del image  # 4 bytes per pixel, before the next 4
    if orientation in _TRANSPOSITIONS:
        pixels = pixels.transpose(_TRANSPOSITIONS[orientation])
    if orientation >= 5:
        width, height, box_width, box_height = height, width, box_height, box_width
    # Shrink on load rounds up, with padding at the stored right and bottom: find them again after the turn.
    left = pixels.width - box_width if orientation in {2, 3, 6, 7} else 0.0
    top = pixels.height - box_height if orientation in {3, 4, 7, 8} else 0.0
    pixels.info.clear()
    return Decoded(_decodable_format(data), width, height, pixels, (left, top, left + box_width, top + box_height))


def _decodable_format(data: bytes) -> ImageFormat:
    image_format = sniff(data)
    if image_format is None:
        raise ImageFailure(FailureKind.NOT_AN_IMAGE, f"{len(data)} bytes: {data[:16]!r}")
    if image_format not in DECODABLE:
        raise ImageFailure(FailureKind.UNSUPPORTED_FORMAT, image_format.value)
    return image_format


def _shrink_on_load(image: ImageFile.ImageFile, longest_side: int | None) -> tuple[float, float]:
    """Has a JPEG decoded at 1/2, 1/4 or 1/8 where that leaves enough; the size of the picture then, with fractions."""
    if longest_side is not None:
        shrink = max(image.size) / (longest_side * REDUCING_GAP)
        wanted = math.ceil(image.width / max(shrink, 1)), math.ceil(image.height / max(shrink, 1))
        if draft := image.draft(None, wanted):  # None for all formats but JPEG
            _, (_, _, width, height) = draft
            return width, height
    return image.width, image.height


def _load_first_frame(image: ImageFile.ImageFile) -> None:
    image.load()
    if isinstance(image, PngImagePlugin.PngImageFile) and image.default_image:
        # The IDAT of such an APNG is no frame but a stand-in for old viewers: clear it. On a clear canvas "over" and
        # "source" are the same; Pillow's "over" would weaken translucent pixels.
        image.paste(0, (0, 0, *image.size))
        image.seek(1)
        image.blend_op = PngImagePlugin.Blend.OP_SOURCE
        image.load()


def _without_decoder(image: ImageFile.ImageFile) -> Image.Image:
    """The loaded image in itself: decoders of WebP and AVIF stay with theirs, and keep all that they decoded."""
    keeps_decoder = isinstance(image, (AvifImagePlugin.AvifImageFile, WebPImagePlugin.WebPImageFile))
    return image.copy() if keeps_decoder else image


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation (1-8) of a loaded image; 1 if it has none, an odd one or broken EXIF."""
    if isinstance(image, AvifImagePlugin.AvifImageFile):
        image.info.pop("xmp", None)  # irot and imir decide, which Pillow tells as EXIF; XMP would turn it twice
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(orientation) if orientation in _TRANSPOSITIONS else 1
    except MemoryError:
        raise
    except Exception:  # as many kinds as for pixels, and the pixels are good
        return 1


def _to_srgb(image: Image.Image) -> Image.Image:
    """A loaded image as RGB, or RGBA if anything in it is transparent."""
    image = _to_8_bits(image)
    colour, alpha = _split(image)
    profile = image.info.get("icc_profile")
    transform = _srgb_transform(profile, colour.mode) if profile and len(profile) <= MAX_PROFILE_BYTES else None
    if transform is not None:
        pixels = transform.apply_in_place(colour) if colour.mode == "RGB" else transform.apply(colour)
    else:
        pixels = _convert(colour, "RGB")  # CMYK without a usable profile as browsers show it: (1-C)(1-K)
    if alpha is not None:
        pixels.putalpha(alpha)
    return pixels


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits, and a 16-bit transparent colour, as their high byte: Pillow reads 16-bit RGB that way itself."""
    if image.mode == "I;16":
        image = image.point(lambda level: level * (1 / 256)).convert("L")  # convert alone clips at 255
    match image.info.get("transparency"):
        case int(level) if level > 255:
            image.info["transparency"] = level >> 8
        case (int(), int(), int()) as levels if max(levels) > 255:
            image.info["transparency"] = tuple(level >> 8 for level in levels)
    return image


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour (mode L, RGB or CMYK) and alpha (None if all is opaque) of an image with 8 bits per channel."""
    gray = image.mode in {"1", "L", "LA"}
    alpha = None
    if image.has_transparency_data:
        alpha = _convert(image, "LA" if gray else "RGBA").getchannel("A")
        if alpha.getextrema()[0] == 255:
            alpha = None
    return _convert(image, "L" if gray else "CMYK" if image.mode == "CMYK" else "RGB"), alpha


def _convert(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


@lru_cache(maxsize=16)  # a source tags most of its images with the same few profiles
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What turns `mode` (L, RGB, CMYK) with this ICC profile into sRGB; None if nothing would change.

    A profile that is broken, or made for another mode, changes nothing: browsers ignore it, too.
    """
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            _SRGB,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return None
    return None if mode == "RGB" and _is_identity(transform) else transform


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a lattice of 729 colours moves by no more than rounding: the profile is sRGB by whatever name."""
    levels = (0, 32, 64, 96, 128, 160, 192, 224, 255)
    lattice = Image.frombytes("RGB", (27, 27), b"".join(map(bytes, product(levels, repeat=3))))
    difference = ImageChops.difference(lattice, transform.apply(lattice))
    return max(difference.tobytes()) <= 1
