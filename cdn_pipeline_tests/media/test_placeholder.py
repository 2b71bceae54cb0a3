"""Placeholders: any picture that is decoded has one, and it is of that picture."""

import random

import pytest
from blurhash_rs import blurhash_decode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cdn_pipeline.media.decode import DECODABLE, ImageFormat, decode
from cdn_pipeline.media.placeholder import placeholder_of
from cdn_pipeline.media.recipes import AVIF_THUMBNAILS, WEBP_THUMBNAILS
from cdn_pipeline.media.transcode import transcode
from cdn_pipeline_tests.media.pictures import encoded, scene

SIDES = st.one_of(st.integers(1, 40), st.integers(1, 700))
COLOURS = st.tuples(*(st.integers(0, 255) for _ in range(3)))


def average(placeholder: str) -> tuple[int, ...]:
    """The average colour that a BlurHash tells: its first component, alone."""
    return pixel(blurhash_decode("00" + placeholder[2:6], 1, 1), 0, 0)


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """Its bands."""
    return tuple(picture.crop((x, y, x + 1, y + 1)).tobytes())


def on_white(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def averages(picture: Image.Image) -> list[tuple[float, float]]:
    """Of each band: the mean level, and the level of its mean light, which is never less."""
    found = []
    for band in on_white(picture).split():
        counts = band.histogram()
        light = sum(count * _light(level / 255) for level, count in enumerate(counts)) / sum(counts)
        mean = sum(count * level for level, count in enumerate(counts)) / sum(counts)
        found.append((mean, 255 * _level(light)))
    return found


def _light(level: float) -> float:
    return level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4


def _level(light: float) -> float:
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def assert_is_of(placeholder: str, picture: Image.Image, tolerance: float = 2) -> None:
    """Valid, and of the picture's average colour: levels are averaged where pixels are, light where components are."""
    assert blurhash_decode(placeholder, 8, 8).size == (8, 8)
    for level, (darkest, brightest) in zip(average(placeholder), averages(picture), strict=True):
        assert darkest - tolerance <= level <= brightest + tolerance


def noise(width: int, height: int, mode: str, seed: int) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), random.Random(seed).randbytes(width * height * channels))


@given(width=SIDES, height=SIDES, mode=st.sampled_from(["RGB", "RGBA"]), seed=st.integers(0, 99))
@settings(deadline=None)
def test_any_picture_has_a_placeholder_of_its_average_colour(width: int, height: int, mode: str, seed: int) -> None:
    picture = noise(width, height, mode, seed)
    placeholder = placeholder_of(picture)
    assert_is_of(placeholder, picture)
    assert placeholder == placeholder_of(picture.copy())
    assert len(placeholder) <= 28


@pytest.mark.parametrize("image_format", sorted(DECODABLE))
@given(width=st.integers(1, 300), height=st.integers(1, 300))
@settings(max_examples=5, deadline=None)
def test_a_picture_of_any_format_has_a_placeholder(image_format: ImageFormat, width: int, height: int) -> None:
    data = encoded(scene(width, height), image_format.name)
    transcoded = transcode(data, WEBP_THUMBNAILS)
    assert_is_of(transcoded.placeholder, decode(data).image)
    assert transcode(data, WEBP_THUMBNAILS).placeholder == transcoded.placeholder


@given(colour=COLOURS, width=SIDES, height=SIDES)
@settings(deadline=None, max_examples=30)
def test_a_plain_picture_is_shown_plain(colour: tuple[int, int, int], width: int, height: int) -> None:
    shown = blurhash_decode(placeholder_of(Image.new("RGB", (width, height), colour)), 16, 16)
    for level, band in zip(colour, shown.split(), strict=True):
        assert level - 40 <= min(band.tobytes()) <= max(band.tobytes()) <= level + 40


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (2, 1), (1000, 3)])
def test_extreme_shapes_have_a_placeholder(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, (200, 40, 90)), "PNG")
    assert average(transcode(data, WEBP_THUMBNAILS).placeholder) == pytest.approx((200, 40, 90), abs=1)


@pytest.mark.parametrize(
    ("picture", "image_format", "colour"),
    [
        (Image.new("RGBA", (60, 40), (0, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (60, 40), (255, 0, 0, 128)), "PNG", (255, 127, 127)),
        (Image.new("I;16", (60, 40), 0x8000), "PNG", (128, 128, 128)),
        (Image.new("CMYK", (60, 40), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("1", (60, 40), 1), "PNG", (255, 255, 255)),
        (Image.new("L", (60, 40), 77), "JPEG", (77, 77, 77)),
    ],
    ids=["transparent", "translucent", "16 bits", "CMYK", "1 bit", "gray"],
)
def test_every_kind_of_pixel_is_understood(
    picture: Image.Image, image_format: str, colour: tuple[int, int, int]
) -> None:
    placeholder = transcode(encoded(picture, image_format), WEBP_THUMBNAILS).placeholder
    assert average(placeholder) == pytest.approx(colour, abs=3)


def test_invisible_pixels_lend_no_colour() -> None:
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 64, 32))
    shown = blurhash_decode(placeholder_of(picture), 32, 32)
    red, green, blue = pixel(shown, 16, 4)
    assert blue > 180 > 100 > max(red, green)
    assert min(pixel(shown, 16, 26)) > 200


def test_what_is_left_and_above_in_a_picture_is_so_in_its_placeholder() -> None:
    picture = Image.new("RGB", (400, 300), "black")
    picture.paste("white", (0, 0, 200, 150))
    shown = blurhash_decode(placeholder_of(picture), 40, 30).convert("L")
    bright, *dark = (pixel(shown, x, y)[0] for x, y in ((5, 5), (35, 5), (5, 25), (35, 25)))
    assert bright > 100 + max(dark)


@pytest.mark.parametrize("size", [(1080, 1350), (90, 90), (500, 300)])
def test_another_recipe_gives_the_same_placeholder(size: tuple[int, int]) -> None:
    data = encoded(scene(*size), "JPEG")
    assert transcode(data, AVIF_THUMBNAILS).placeholder == transcode(data, WEBP_THUMBNAILS).placeholder


def test_a_placeholder_leaves_the_picture_as_it_is() -> None:
    picture = scene(100, 80)
    before = picture.tobytes()
    placeholder_of(picture)
    assert picture.tobytes() == before


def test_a_turned_picture_has_the_placeholder_of_the_upright_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    upright, turned = scene(300, 200), scene(300, 200).rotate(180)
    shown = [
        transcode(encoded(picture, "PNG", **options), WEBP_THUMBNAILS).placeholder
        for picture, options in ((upright, {}), (turned, {"exif": exif}))
    ]
    assert shown[0] == shown[1] != placeholder_of(turned)
