import random
from collections.abc import Callable
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw

from cdn_pipeline.demo.photographs import make_photograph
from cdn_pipeline.media import resample as module
from cdn_pipeline.media.resample import resample
from cdn_pipeline_tests.media.pictures import decibels, scene

NEAR = 45.0  # decibels


def by_pillow(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS)


def whole(image: Image.Image) -> tuple[float, float, float, float]:
    return 0, 0, image.width, image.height


def photograph(seed: int) -> Image.Image:
    return Image.open(BytesIO(make_photograph(seed, width=1080, height=1350, quality=80))).convert("RGB")


@pytest.mark.parametrize("seed", range(12))
def test_a_photograph_comes_out_as_pillows_own_lanczos_makes_it(seed: int) -> None:
    image = photograph(seed)
    sizes = [(410, 512), (205, 256)]
    made = resample(image, whole(image), sizes)
    for size in sizes:
        assert decibels(made[size], by_pillow(image, size)) > NEAR


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_size_that_is_not_larger_is_made_exactly(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 1500)), data.draw(st.integers(1, 1500))
    sizes = data.draw(st.sets(st.tuples(st.integers(1, width), st.integers(1, height)), min_size=1, max_size=3))
    image = scene(width, height)
    made = resample(image, whole(image), sizes)
    assert {size: picture.size for size, picture in made.items()} == {size: size for size in sizes}
    assert {picture.mode for picture in made.values()} == {"RGB"}


@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(2, 900), st.integers(2, 900))
def test_a_plain_colour_stays_what_it_is(colour: tuple[int, int, int], width: int, height: int) -> None:
    image = Image.new("RGB", (width, height), colour)
    size = max(1, width // 2), max(1, height // 3)
    made = resample(image, whole(image), [size])[size]
    assert max(ImageChops.difference(made, Image.new("RGB", size, colour)).tobytes()) <= 1


def test_an_image_of_that_size_already_keeps_its_pixels() -> None:
    image = scene(300, 200)
    assert resample(image, whole(image), [(300, 200)])[300, 200].tobytes() == image.tobytes()


def drawing() -> Image.Image:
    """Black lines on white, as hard as edges get: thin, thick, straight and slanted."""
    image = Image.new("RGB", (1080, 1350), "white")
    pen = ImageDraw.Draw(image)
    for n in range(0, 1080, 27):
        pen.line((n, 0, n, 600), "black", n // 108)
        pen.line((n, 650, 1080 - n, 1350), (n % 256, 0, 90), 1 + n // 216)
    return image


def test_hard_edges_come_out_as_pillow_makes_them() -> None:
    image = drawing()
    sizes = [(410, 512), (205, 256)]
    made = resample(image, whole(image), sizes)
    for size in sizes:
        assert decibels(made[size], by_pillow(image, size)) > NEAR


def halftone() -> Image.Image:
    """Black and white pixels at random: where most overshoots, and little is clipped."""
    noise = Image.frombytes("L", (1080, 1080), random.Random(1).randbytes(1080 * 1080))
    return noise.point(lambda value: 255 * (value > 127)).convert("RGB")


@pytest.mark.parametrize("picture", [drawing, halftone])
def test_a_size_is_not_made_from_a_larger_one_that_was_clipped(picture: Callable[[], Image.Image]) -> None:
    image = picture()
    height = 512 * image.height // image.width
    alone = resample(image, whole(image), [(256, height // 2)])
    both = resample(image, whole(image), [(512, height), (256, height // 2)])
    assert both[256, height // 2].tobytes() == alone[256, height // 2].tobytes()


def test_a_photographs_smaller_size_is_made_from_the_larger_one() -> None:
    image = photograph(1)
    larger = resample(image, whole(image), [(410, 512)])[410, 512]
    both = resample(image, whole(image), [(410, 512), (205, 256)])
    assert both[205, 256].tobytes() == resample(larger, whole(larger), [(205, 256)])[205, 256].tobytes()


def test_sizes_that_differ_little_are_each_made_from_all_pixels() -> None:
    image = photograph(1)
    both = resample(image, whole(image), [(410, 512), (256, 320)])
    assert both[256, 320].tobytes() == resample(image, whole(image), [(256, 320)])[256, 320].tobytes()


def test_thin_pictures_are_pillows() -> None:
    image = drawing().crop((0, 0, 1080, 20))
    assert resample(image, whole(image), [(256, 5)])[256, 5].tobytes() == by_pillow(image, (256, 5)).tobytes()


def test_what_is_made_outlives_the_image_it_was_made_from() -> None:
    image = scene(600, 600)
    expected = by_pillow(image, (100, 100))
    made = resample(image, whole(image), [(100, 100)])[100, 100]
    del image
    assert decibels(made, expected) > NEAR


@pytest.mark.parametrize("box", [(0.0, 0.0, 300.5, 200.0), (0.5, 0.0, 301.0, 200.0)])
def test_boxes_with_fractions_are_pillows(box: tuple[float, float, float, float]) -> None:
    image = scene(301, 200)
    expected = image.resize((64, 48), Image.Resampling.LANCZOS, box)
    assert resample(image, box, [(64, 48)])[64, 48].tobytes() == expected.tobytes()


def test_transparent_pictures_are_pillows_which_premultiplies() -> None:
    image = scene(400, 400)
    image.putalpha(Image.radial_gradient("L").resize((400, 400)))
    assert resample(image, whole(image), [(99, 99)])[99, 99].tobytes() == by_pillow(image, (99, 99)).tobytes()


def test_large_pictures_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    image = scene(400, 400)
    monkeypatch.setattr(module, "MAX_COPIED_PIXELS", 400 * 400 - 1)
    assert resample(image, whole(image), [(99, 99)])[99, 99].tobytes() == by_pillow(image, (99, 99)).tobytes()
