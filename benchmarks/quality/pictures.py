"""What is measured on: photographs as they come, and pictures on which resamplers differ most."""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cdn_pipeline.demo.photographs import make_photograph
from cdn_pipeline.failures import ImageFailure
from cdn_pipeline.media.decode import open_checked

CORPUS = Path(os.environ.get("CDN_PIPELINE_CORPUS", "/nonexistent"))

_PHOTOGRAPH = (1080, 1350)  # Instagram's 4:5
_PNG_DEPTH = 24  # the offset of the bits per channel in a PNG file


@dataclass(frozen=True, slots=True)
class Picture:
    """An original: its name, the group that its results are told in, and its bytes."""

    name: str
    group: str
    data: bytes


def photographs(count: int, seed: int) -> list[Picture]:
    """So many photographs, half of them from the corpus where there is one; the same for the same seed."""
    from_corpus = [path for path in sorted((CORPUS / "photos").glob("*")) if _fills_largest_size(path)]
    drawn = random.Random(seed).sample(from_corpus, min(count // 2, len(from_corpus)))
    made = range(seed, seed + count - len(drawn))
    width, height = _PHOTOGRAPH
    return [
        *(Picture(path.name, "photographs", path.read_bytes()) for path in drawn),
        *(
            Picture(
                f"photograph {number}", "photographs", make_photograph(number, width=width, height=height, quality=85)
            )
            for number in made
        ),
    ]


def _fills_largest_size(path: Path) -> bool:
    with Image.open(path) as image:
        return max(image.size) > 512


def hard_cases() -> Iterator[Picture]:
    """Drawings, alpha, few colours, 16 bits and odd shapes: made ones, and all of the corpus that can be decoded."""
    yield from _made_cases()
    for path in sorted(CORPUS.glob("*/*")):
        data = path.read_bytes()
        try:
            group = _group(open_checked(data), data)
        except ImageFailure:  # hostile or no picture: not what this is about
            continue
        yield Picture(path.name, group, data)


def _group(image: Image.Image, data: bytes) -> str:
    """By what makes it hard; the first that applies."""
    groups = {
        "16 bits": image.mode.startswith("I") or (image.format == "PNG" and data[_PNG_DEPTH] == 16),
        "palette": image.mode == "P",
        "alpha": image.has_transparency_data,
        "gray": image.mode in {"1", "L"},
        "other PNG, GIF, WebP": image.format not in {"JPEG", "AVIF"},
    }
    return next((group for group, applies in groups.items() if applies), "photographs")


def _made_cases() -> Iterator[Picture]:
    drawing, cut_out = line_art(), transparent_photograph()
    yield _png("line art", "drawings", drawing)
    yield _png("line art, two colours", "drawings", drawing.convert("1"))
    yield _png("one-pixel stripes", "drawings", _stripes())
    yield _png("cut-out photograph", "alpha", cut_out)
    yield _png("palette of 32", "palette", drawing.quantize(32))
    yield _png("gray", "gray", cut_out.convert("L"))
    yield _png("gray of 16 bits", "16 bits", Image.linear_gradient("L").resize((1080, 1080)).convert("I;16"))
    for width, height in ((3, 4000), (4000, 1), (1, 513), (2000, 15), (260, 31), (2000, 260), (130, 1000)):
        odd = cut_out.convert("RGB").resize((width, height))
        yield _png(f"{width} by {height}", "odd shapes", odd)


@cache
def line_art() -> Image.Image:
    """Text, thin lines and flat colours with hard edges: what ringing and shifts are seen on."""
    image = Image.new("RGB", (1080, 1080), "white")
    draw = ImageDraw.Draw(image)
    for step in range(0, 1080, 12):
        draw.line((0, step, 1080, 1080 - step), fill="black", width=1)
    for row, colour in enumerate(("red", "blue", "black", "magenta")):
        draw.text((40, 40 + 260 * row), f"cdn_pipeline {row}", fill=colour, font=ImageFont.load_default(90))
        draw.rectangle((700, 40 + 260 * row, 1000, 200 + 260 * row), fill=colour, outline="yellow", width=3)
    return image


@cache
def transparent_photograph() -> Image.Image:
    """A photograph cut out by an ellipse with a soft edge; saturated colours stand where it is clear."""
    width, height = _PHOTOGRAPH
    photograph = Image.open(BytesIO(make_photograph(1, width=width, height=height, quality=95))).convert("RGB")
    mask = Image.new("L", photograph.size, 0)
    ImageDraw.Draw(mask).ellipse((100, 100, width - 100, height - 100), fill=255)
    hidden = Image.new("RGB", photograph.size, "lime")
    cut_out = Image.composite(photograph, hidden, mask)
    cut_out.putalpha(mask.filter(ImageFilter.GaussianBlur(6)))
    return cut_out


def _stripes() -> Image.Image:
    stripes = Image.new("L", (1080, 1080), 0)
    draw = ImageDraw.Draw(stripes)
    for x in range(0, 1080, 2):
        draw.line((x, 0, x, 1080), fill=255)
    return stripes.convert("RGB")


def _png(name: str, group: str, image: Image.Image) -> Picture:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return Picture(name, group, buffer.getvalue())
