"""Small files that cost a naive decoder much memory or time, made here."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

from PIL import Image
from PIL.PngImagePlugin import putchunk

from cdn_pipeline_tests.media.pictures import encoded, scene

PICTURE = scene(64, 48)


def _chunk(name: bytes, data: bytes) -> bytes:
    buffer = BytesIO()
    putchunk(buffer, name, data)
    return buffer.getvalue()


def _png_with(chunks: bytes) -> bytes:
    png = encoded(PICTURE, "PNG")
    return png[:33] + chunks + png[33:]


def _jpeg_with(segments: bytes) -> bytes:
    jpeg = encoded(PICTURE, "JPEG")
    return jpeg[:2] + segments + jpeg[2:]


def _exif_bomb(tags: int, size: int) -> bytes:
    """So many tags, each with all of the same bytes as its value."""
    directory = struct.pack("<2sHLH", b"II", 42, 8, tags)
    entries = b"".join(struct.pack("<HHLL", number, 7, size, 14 + 12 * tags) for number in range(tags))
    return directory + entries + bytes(4 + size)


def _exif_loop() -> bytes:
    entries = [struct.pack("<HHLL", tag, 4, 1, 8) for tag in (0x8769, 0x8825)]  # EXIF and GPS directory: this one
    return struct.pack("<2sHLH", b"II", 42, 8, 2) + b"".join(entries) + bytes(4)


def _gif_with(blocks: bytes, *, first: bool) -> bytes:
    gif = encoded(Image.new("P", (64, 48)), "GIF")
    at = 13 + 3 * (2 << (gif[10] & 7)) if first else len(gif) - 1
    return gif[:at] + blocks + gif[at:]


def _webp_of_many_frames(frames: int) -> bytes:
    picture = encoded(Image.new("RGB", (2, 2)), "WEBP", lossless=True)[12:]
    frame = bytes(6) + 2 * (1).to_bytes(3, "little") + bytes(4) + picture
    canvas = b"\x02\0\0\0" + (1999).to_bytes(3, "little") + (999).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body += frames * (b"ANMF" + struct.pack("<I", len(frame)) + frame)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _avif_that_claims(width: int, height: int) -> bytes:
    avif = bytearray(encoded(PICTURE, "AVIF", speed=10))
    at = avif.index(b"ispe") + 8
    avif[at : at + 8] = struct.pack(">2I", width, height)
    return bytes(avif)


FILES: dict[str, Callable[[], bytes]] = {
    "exif of 60,000 tags of 1 MB": lambda: _png_with(_chunk(b"eXIf", _exif_bomb(60_000, 1_000_000))),
    "exif directories in a circle": lambda: _png_with(_chunk(b"eXIf", _exif_loop())),
    "100 exif segments": lambda: _jpeg_with(100 * (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527))),
    "200,000 empty jpeg segments": lambda: _jpeg_with(200_000 * b"\xff\xfe\0\2"),
    "1 MB of fill bytes": lambda: _jpeg_with(1_000_000 * b"\xff"),
    "100,000 png chunks": lambda: _png_with(100_000 * _chunk(b"abCd", b"")),
    "text chunks of 100 MB": lambda: _png_with(120 * _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(900_000)))),
    "xmp of 40 MB": lambda: _png_with(
        _chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(2_500_000 * b"<tiff:Orientation"))
    ),
    "gif of 100,000 frames": lambda: _gif_with(
        100_000 * (b"," + struct.pack("<4H", 0, 0, 1, 1) + b"\0\2\2\x4c\1\0"), first=False
    ),
    "100,000 gif comments": lambda: _gif_with(100_000 * b"!\xfe\1x\0", first=True),
    "gif frame far outside its canvas": lambda: _gif_with(
        b"," + struct.pack("<4H", 65_000, 65_000, 60_000, 60_000) + b"\0\2\2\x4c\1\0", first=True
    ),
    "webp of 30,000 frames": lambda: _webp_of_many_frames(30_000),
    "avif that claims 48 megapixels": lambda: _avif_that_claims(8000, 6000),
    "avif that claims 4 gigapixels": lambda: _avif_that_claims(65_535, 65_535),
}
