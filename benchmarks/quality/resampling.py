"""Resamplers: Pillow's Lanczos, libvips', and what recipes make of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import truediv

import pyvips  # type: ignore[import-not-found,unused-ignore]
from PIL import Image

from benchmarks.quality.measures import psnr
from benchmarks.quality.pictures import Picture
from benchmarks.quality.timing import timed
from benchmarks.report import Figure
from cdn_pipeline.demo.photographs import make_photograph
from cdn_pipeline.failures import ImageFailure
from cdn_pipeline.media.decode import Decoded, decode
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline.media.resample import resample
from cdn_pipeline.media.transcode import fit_inside

Sizes = dict[str, tuple[int, int]]
Resampler = Callable[[Decoded, Sizes], dict[str, Image.Image]]

_KERNEL = "lanczos3"

LEAST_DB = 45.0
"""What another resampler has to reach against Pillow's on every picture."""

_SLIVER = 32  # pixels: libraries treat edges differently, and thinner renditions are little else
_SLIVERS = f"pictures that become thinner than {_SLIVER} px"
_SOURCES = ((640, 480), (1080, 1350), (1440, 1800))
_PICTURES_A_SOURCE = 6

_PREMULTIPLIED = {"RGBA": "RGBa"}


def renditions_of(data: bytes) -> dict[str, Image.Image]:
    """The recipe's sizes of a photograph by name, through Pillow's Lanczos: what encoders are given."""
    picture = _decoded(data)
    return with_pillow(picture, _sizes(picture))


def _decoded(data: bytes) -> Decoded:
    return decode(data, longest_side=max(WEBP_THUMBNAILS.longest_sides))


def _sizes(picture: Decoded) -> Sizes:
    """Those of the recipe that are smaller than the picture: any other has its very pixels."""
    fitted = {
        size.name: fit_inside(picture.width, picture.height, size.width, size.height) for size in WEBP_THUMBNAILS.sizes
    }
    return {name: sides for name, sides in fitted.items() if sides != picture.image.size}


def with_pillow(picture: Decoded, sizes: Sizes) -> dict[str, Image.Image]:
    """Lanczos on premultiplied sRGB values, along rows first."""
    return {name: picture.image.resize(sides, Image.Resampling.LANCZOS, picture.box) for name, sides in sizes.items()}


@dataclass(frozen=True, slots=True)
class Vips:
    """libvips' Lanczos, in 8 bits, which it has SIMD for.

    Both libraries round and clip between their two passes. libvips goes along columns first, Pillow along rows:
    `rows_first` has libvips do the same. `gap` is how much is left to Lanczos after averaging whole pixels (0: all;
    libvips' own default is 2), for columns first alone.
    """

    rows_first: bool = False
    gap: float = 0.0
    premultiply: bool = True
    linear_light: bool = False

    def __call__(self, picture: Decoded, sizes: Sizes) -> dict[str, Image.Image]:
        """All sizes of pixels that are handed over once."""
        image = picture.image
        mode = _PREMULTIPLIED.get(image.mode, image.mode) if self.premultiply else image.mode
        pixels = _to_vips(image if mode == image.mode else image.convert(mode))
        left, top, right, bottom = picture.box
        return {
            name: _from_vips(self._reduce(pixels, (right - left) / width, (bottom - top) / height), mode, image.mode)
            for name, (width, height) in sizes.items()
        }

    def _reduce(self, pixels: pyvips.Image, horizontally: float, vertically: float) -> pyvips.Image:
        if self.rows_first:
            return pixels.reduceh(horizontally, kernel=_KERNEL).reducev(vertically, kernel=_KERNEL)
        if self.linear_light:
            return pixels.colourspace("scrgb").reduce(horizontally, vertically, kernel=_KERNEL).colourspace("srgb")
        return pixels.reduce(horizontally, vertically, kernel=_KERNEL, gap=self.gap)


def _to_vips(image: Image.Image) -> pyvips.Image:
    bands = len(image.getbands())
    pixels = pyvips.Image.new_from_memory(image.tobytes(), image.width, image.height, bands, "uchar")
    return pixels.copy(interpretation="srgb")


def _from_vips(pixels: pyvips.Image, mode: str, wanted: str) -> Image.Image:
    image = Image.frombytes(mode, (pixels.width, pixels.height), pixels.write_to_memory())
    return image if mode == wanted else image.convert(wanted)


def as_recipes_do(picture: Decoded, sizes: Sizes) -> dict[str, Image.Image]:
    """The pipeline's own: libvips, rows first, a size from the one before it where that serves; else Pillow."""
    made = resample(picture.image, picture.box, set(sizes.values()))
    return {name: made[sides] for name, sides in sizes.items()}


_OURS = "the recipes' resampler"
_VIPS: dict[str, Resampler] = {
    _OURS: as_recipes_do,
    "libvips, columns first": Vips(),
    "libvips, rows first": Vips(rows_first=True),
}
_WAYS_OF_GROUP: dict[str, dict[str, Resampler]] = {
    "photographs": {
        "libvips, averaging first (its default gap of 2)": Vips(gap=2.0),
        "libvips, linear light instead of sRGB values": Vips(linear_light=True),
    },
    "alpha": {"libvips, alpha not premultiplied": Vips(premultiply=False)},
}


def cpu_figures(rounds: int) -> list[Figure]:
    """Pillow's CPU ÷ libvips' for both sizes, round by round, with the hand-over of pixels to libvips and back."""
    return [figure for sides in _SOURCES for figure in _cpu_figures_of(*sides, rounds)]


def _cpu_figures_of(width: int, height: int, rounds: int) -> Iterator[Figure]:
    pictures = [
        _decoded(make_photograph(seed, width=width, height=height, quality=85)) for seed in range(_PICTURES_A_SOURCE)
    ]
    resamplers = {"Pillow": with_pillow, **_VIPS}
    seconds = {name: [0.0] * rounds for name in resamplers}
    for number in range(rounds):
        for picture in pictures:
            for name, resampler in resamplers.items():
                seconds[name][number] += timed(resampler, picture, _sizes(picture))[1]
    for name in _VIPS:
        ratios = map(truediv, seconds["Pillow"], seconds[name])
        yield Figure(f"{width}x{height}, Pillow's CPU ÷ that of {name}", tuple(ratios))


def psnr_figures(pictures: Iterable[Picture]) -> list[Figure]:
    """How near each way comes to Pillow, by groups of pictures, with the name of the picture that is worst."""
    found: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for picture in pictures:
        for group, value in _psnrs(picture):
            found.setdefault(group, []).append((value, picture.name))
    lowest = min(min(values) for (way, _), values in found.items() if way == _OURS)
    return [
        Figure(f"{_OURS}, lowest PSNR of all pictures", lowest[:1], "dB", 1, at_least=LEAST_DB),
        *(
            Figure(f"{way}: PSNR of {group} (lowest: {min(values)[1]})", tuple(value for value, _ in values), "dB", 1)
            for (way, group), values in sorted(found.items())
        ),
    ]


def _psnrs(picture: Picture) -> Iterator[tuple[tuple[str, str], float]]:
    """Way, group and PSNR against Pillow of each rendition; none of a picture that is not made smaller or is broken."""
    try:
        decoded = _decoded(picture.data)
    except ImageFailure:
        return
    sizes = _sizes(decoded)
    reference = with_pillow(decoded, sizes)
    group = _SLIVERS if any(min(sides) < _SLIVER for sides in sizes.values()) else picture.group
    for way, resampler in {**_VIPS, **_WAYS_OF_GROUP.get(group, {})}.items():
        for size, made in resampler(decoded, sizes).items():
            yield (way, group), psnr(reference[size], made)
