"""Encoder settings: CPU time, and bytes at the quality of the present recipe."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from benchmarks.quality.curves import Curve, Point
from benchmarks.quality.encoders import METHOD_4, METHOD_5, OTHERS, PRESENT, SHARP_YUV, VIPS, Encoder
from benchmarks.quality.measures import MEASURES
from benchmarks.quality.pictures import Picture, transparent_photograph
from benchmarks.quality.resampling import renditions_of
from benchmarks.quality.timing import timed
from benchmarks.report import Figure
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS

QUALITY = WEBP_THUMBNAILS.quality
DECIDING = "SSIMULACRA2"
"""The measure at which settings are held to be equally good; the others are told beside it."""


@dataclass(frozen=True, slots=True)
class Rendition:
    """One size of one picture: its pixels, and the curve of each encoder by name."""

    size: str
    pixels: Image.Image
    curves: dict[str, Curve]

    @property
    def present(self) -> Point:
        """What the present recipe makes of it."""
        return self.curves[PRESENT.name].at(QUALITY)


def drawn(pictures: Sequence[Picture]) -> list[Rendition]:
    """Each size of each picture with the curves of all encoders."""
    return [
        Rendition(name, pixels, {encoder.name: _curve(encoder, pixels) for encoder in (PRESENT, *OTHERS)})
        for picture in pictures
        for name, pixels in renditions_of(picture.data).items()
    ]


def _curve(encoder: Encoder, pixels: Image.Image) -> Curve:
    points = []
    for setting in encoder.settings:
        data = encoder.encode(pixels, setting)
        shown = decoded(data)
        points.append(Point(setting, len(data), {name: score(pixels, shown) for name, score in MEASURES.items()}))
    return Curve(points)


def decoded(data: bytes) -> Image.Image:
    """An encoded rendition's pixels, RGB."""
    with Image.open(BytesIO(data)) as image:
        return image.convert("RGB")


def bytes_figures(renditions: Sequence[Rendition]) -> list[Figure]:
    """Bytes ÷ the present recipe's, rendition by rendition: at its quality setting (WebP), and at equal scores."""
    webp = [encoder for encoder in OTHERS if QUALITY in encoder.settings]
    return [
        *(
            Figure(f"{encoder.name}: bytes at quality {QUALITY}", _ratios_at_present(renditions, encoder), decimals=3)
            for encoder in webp
        ),
        *(
            Figure(f"{encoder.name}: bytes at equal {measure}", ratios, decimals=3)
            for encoder in OTHERS
            for measure in MEASURES
            if (ratios := _ratios_at_equal(renditions, encoder, measure))
        ),
    ]


def _ratios_at_present(renditions: Sequence[Rendition], encoder: Encoder) -> tuple[float, ...]:
    return tuple(each.curves[encoder.name].at(QUALITY).size / each.present.size for each in renditions)


def _ratios_at_equal(renditions: Sequence[Rendition], encoder: Encoder, measure: str) -> tuple[float, ...]:
    """Of the renditions whose curve reaches the present score."""
    compared = [(each.curves[encoder.name], each.present) for each in renditions]
    return tuple(
        curve.size_for(measure, present.scores[measure]) / present.size
        for curve, present in compared
        if curve.reaches(measure, present.scores[measure])
    )


def equal_setting(renditions: Sequence[Rendition], encoder: Encoder) -> int:
    """The setting that gives the median rendition the present recipe's score."""
    settings = [each.curves[encoder.name].setting_for(DECIDING, each.present.scores[DECIDING]) for each in renditions]
    return round(statistics.median(settings))


def cpu_figures(pictures: Sequence[Picture], renditions: Sequence[Rendition], rounds: int, seed: int) -> list[Figure]:
    """For each encoder at its equal setting, CPU ÷ the present recipe's: of encoding alone, of the whole image.

    Each round decodes and resizes every picture, and encodes every rendition with all encoders in an order by chance.
    Sharp YUV is libvips', so it is told against libvips' own plain encoding.
    """
    chance = random.Random(seed)
    settings = {encoder: equal_setting(renditions, encoder) for encoder in OTHERS} | {PRESENT: QUALITY, VIPS: QUALITY}
    encoding: dict[Encoder, list[float]] = {encoder: [] for encoder in (*OTHERS, VIPS)}
    whole: dict[Encoder, list[float]] = {encoder: [] for encoder in (*OTHERS, VIPS)}
    for _ in range(rounds):
        before = sum(timed(renditions_of, picture.data)[1] for picture in pictures)
        seconds = dict.fromkeys(settings, 0.0)
        for rendition in renditions:
            for encoder in chance.sample([*settings], len(settings)):
                seconds[encoder] += timed(encoder.encode, rendition.pixels, settings[encoder])[1]
        for encoder in encoding:
            present = seconds[VIPS if encoder is SHARP_YUV else PRESENT]
            encoding[encoder].append(seconds[encoder] / present)
            whole[encoder].append((before + seconds[encoder]) / (before + present))
    return [
        Figure(f"{encoder.name}, quality {settings[encoder]}: CPU of {what}", tuple(ratios[encoder]))
        for encoder in encoding
        for what, ratios in (("encoding", encoding), ("the whole image", whole))
    ]


def alpha_figures(rounds: int) -> list[Figure]:
    """What a picture with a soft transparent edge takes at 512 px, ÷ the present recipe's."""
    picture = transparent_photograph().copy()
    picture.thumbnail((512, 512), Image.Resampling.LANCZOS)
    encoders = (PRESENT, METHOD_5, METHOD_4)
    seconds: dict[Encoder, list[float]] = {encoder: [] for encoder in encoders}
    size: dict[Encoder, int] = {}
    for _ in range(rounds):
        for encoder in encoders:
            data, spent = timed(encoder.encode, picture, QUALITY)
            seconds[encoder].append(spent)
            size[encoder] = len(data)
    present = seconds[PRESENT]
    figures = [
        Figure(f"with alpha, 512 px: CPU of encoding, {PRESENT.name}", tuple(1000 * s for s in present), "ms", 0)
    ]
    for encoder in encoders[1:]:
        ratios = tuple(own / its for own, its in zip(seconds[encoder], present, strict=True))
        figures.append(Figure(f"with alpha, 512 px: CPU of encoding, {encoder.name}", ratios, decimals=3))
        figures.append(
            Figure(f"with alpha, 512 px: bytes, {encoder.name}", (size[encoder] / size[PRESENT],), decimals=3)
        )
    return figures
