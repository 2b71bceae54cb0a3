import dataclasses
import hashlib
import pickle
import re
import subprocess
import sys
from io import BytesIO
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import AvifImagePlugin, Image

from cdn_pipeline.demo.photographs import make_photograph
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.media.decode import DECODABLE, ImageFormat, decode
from cdn_pipeline.media.recipes import AVIF_THUMBNAILS, WEBP_THUMBNAILS, Recipe, Size
from cdn_pipeline.media.transcode import Rendition, fit_inside, transcode
from cdn_pipeline_tests.media.pictures import ADOBE_RGB, decibels, difference, encoded, rgb_profile, scene

SIDES = st.integers(1, 3000)


def renditions_of(data: bytes, recipe: Recipe = WEBP_THUMBNAILS) -> dict[str, Rendition]:
    return {rendition.size: rendition for rendition in transcode(data, recipe).renditions}


def picture_of(rendition: Rendition) -> Image.Image:
    return Image.open(BytesIO(rendition.data))


class TestSizes:
    @given(width=SIDES, height=SIDES, box_width=SIDES, box_height=SIDES)
    def test_a_rendition_fits_keeps_its_shape_and_is_never_larger(
        self, width: int, height: int, box_width: int, box_height: int
    ) -> None:
        fitted_width, fitted_height = fit_inside(width, height, box_width, box_height)
        assert 1 <= fitted_width <= min(width, box_width)
        assert 1 <= fitted_height <= min(height, box_height)
        scale = min(box_width / width, box_height / height, 1)
        assert abs(fitted_width - width * scale) <= 0.5 or fitted_width == 1
        assert abs(fitted_height - height * scale) <= 0.5 or fitted_height == 1

    @pytest.mark.parametrize(
        ("original", "fitted"),
        [
            ((1080, 1350), (205, 256)),  # 204.8: rounded, not floored
            ((1080, 1080), (256, 256)),
            ((1080, 566), (256, 134)),
            ((256, 256), (256, 256)),
            ((100, 50), (100, 50)),
            ((3000, 1), (256, 1)),
            ((1, 3000), (1, 256)),
            ((512, 1), (256, 1)),  # exactly half a pixel
        ],
    )
    def test_known_sizes(self, original: tuple[int, int], fitted: tuple[int, int]) -> None:
        assert fit_inside(*original, 256, 256) == fitted

    @pytest.mark.parametrize("image_format", sorted(DECODABLE))
    @given(width=st.integers(1, 700), height=st.integers(1, 700))
    @settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_what_is_encoded_has_the_size_that_is_recorded(
        self, image_format: ImageFormat, width: int, height: int
    ) -> None:
        transcoded = transcode(encoded(scene(width, height), image_format.name), WEBP_THUMBNAILS)
        assert (transcoded.format, transcoded.width, transcoded.height) == (image_format, width, height)
        for size, rendition in zip(WEBP_THUMBNAILS.sizes, transcoded.renditions, strict=True):
            assert rendition.size == size.name
            assert (rendition.width, rendition.height) == fit_inside(width, height, size.width, size.height)
            assert picture_of(rendition).size == (rendition.width, rendition.height)

    def test_sizes_are_those_of_the_upright_picture(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        transcoded = transcode(encoded(scene(800, 600), "JPEG", exif=exif), WEBP_THUMBNAILS)
        assert (transcoded.width, transcoded.height) == (600, 800)
        assert [(r.width, r.height) for r in transcoded.renditions] == [(192, 256), (384, 512)]

    def test_a_jpeg_shrunk_on_load_reports_its_own_size(self) -> None:
        transcoded = transcode(encoded(scene(3301, 2203), "JPEG"), WEBP_THUMBNAILS)
        assert (transcoded.width, transcoded.height) == (3301, 2203)
        assert [(r.width, r.height) for r in transcoded.renditions] == [(256, 171), (512, 342)]


class TestPixels:
    def test_a_rendition_looks_like_its_original(self) -> None:
        upright = scene(1080, 1350)
        rendition = renditions_of(encoded(upright, "JPEG", quality=95))["512"]
        expected = upright.resize((rendition.width, rendition.height), Image.Resampling.LANCZOS)
        assert difference(picture_of(rendition).convert("RGB"), expected) < 3

    def test_transparent_pixels_lend_no_colour_to_the_edge(self) -> None:
        image = Image.new("RGBA", (1000, 1000), (0, 0, 0, 0))
        image.paste((255, 255, 255, 255), (333, 333, 777, 777))
        rendition = picture_of(renditions_of(encoded(image, "PNG"))["256"]).convert("RGBA")
        visible = rendition.getchannel("A").point(lambda alpha: 255 * (alpha > 16))
        for band in "RGB":
            darkest = min(level for level, count in enumerate(rendition.getchannel(band).histogram(visible)) if count)
            assert darkest > 240

    def test_palettes_are_smoothed_and_not_sampled(self) -> None:
        checkers = Image.new("P", (1024, 1024))
        checkers.putpalette(bytes((0, 0, 0, 255, 255, 255)))
        checkers.putdata([(x + y) % 2 for y in range(1024) for x in range(1024)])
        low, high = picture_of(renditions_of(encoded(checkers, "PNG"))["256"]).convert("L").getextrema()
        assert (low, high) == pytest.approx((128, 128), abs=6)

    def test_every_mode_a_format_can_hold_is_encoded(self) -> None:
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            image = Image.new("I;16", (20, 10)) if mode == "I;16" else scene(20, 10).convert(mode)
            assert picture_of(renditions_of(encoded(image, "PNG"))["256"]).size == (20, 10)


class TestBytes:
    def test_nothing_but_pixels_is_kept(self) -> None:
        exif = Image.Exif()
        exif[0x010E] = "where I live"
        metadata: dict[str, Any] = {"exif": exif, "icc_profile": rgb_profile(ADOBE_RGB, 2.2), "xmp": b"<x:xmpmeta/>"}
        for data in (encoded(scene(600, 400), "JPEG", **metadata), encoded(scene(60, 40), "WEBP", **metadata)):
            for rendition in renditions_of(data).values():
                assert rendition.data[12:16] == b"VP8 "  # the simple file format: no room for metadata
                assert not {"exif", "icc_profile", "xmp"} & picture_of(rendition).info.keys()

    def test_the_same_bytes_give_the_same_renditions(self) -> None:
        data = encoded(scene(120, 90).convert("RGBA").rotate(10, expand=True), "PNG")
        assert transcode(data, WEBP_THUMBNAILS).renditions == transcode(data, WEBP_THUMBNAILS).renditions

    def test_renditions_are_named_by_their_own_hash(self) -> None:
        for rendition in renditions_of(encoded(scene(700, 500), "JPEG")).values():
            assert rendition.sha256 == hashlib.sha256(rendition.data).hexdigest()

    def test_sizes_that_a_small_picture_does_not_fill_share_their_bytes(self) -> None:
        small = renditions_of(encoded(scene(200, 100), "PNG"))
        assert small["256"].data is small["512"].data

    def test_quality_and_effort_are_those_of_the_recipe(self) -> None:
        data = encoded(scene(300, 300), "PNG")
        expected = encoded(scene(300, 300), "WEBP", quality=85, method=6)
        assert renditions_of(data)["512"].data == expected
        frugal = dataclasses.replace(WEBP_THUMBNAILS, quality=20)
        assert len(renditions_of(data, frugal)["512"].data) < len(expected)

    def test_the_encoder_is_recorded_and_the_result_can_leave_the_process(self) -> None:
        transcoded = transcode(encoded(scene(300, 300), "PNG"), WEBP_THUMBNAILS)
        assert re.fullmatch(r"pillow [\d.]+ libvips [\d.]+ libwebp [\d.]+", transcoded.encoder)
        assert transcoded.cpu_ms > 0
        assert pickle.loads(pickle.dumps(transcoded)) == transcoded

    def test_a_recipe_in_a_format_without_encoder_is_an_error_of_ours(self) -> None:
        recipe = Recipe("other", 1, (Size("full", 10, 10),), format="tiff", quality=85, effort=6)
        with pytest.raises(ValueError, match="tiff"):
            transcode(encoded(scene(20, 10), "PNG"), recipe)


class TestAvif:
    def test_it_has_the_sizes_that_webp_has(self) -> None:
        data = encoded(scene(1080, 1350), "JPEG", quality=95)
        webp, avif = renditions_of(data), renditions_of(data, AVIF_THUMBNAILS)
        for size in ("256", "512"):
            assert (avif[size].width, avif[size].height) == (webp[size].width, webp[size].height)
            assert picture_of(avif[size]).size == (avif[size].width, avif[size].height)
            assert picture_of(avif[size]).format == "AVIF"

    @pytest.mark.parametrize("size", ["256", "512"])
    def test_it_is_as_good_as_webp_and_smaller(self, size: str) -> None:
        original = make_photograph(7, width=1080, height=1080, quality=85)
        decoded = decode(original, longest_side=512)
        pixels = decoded.image.resize((int(size), int(size)), Image.Resampling.LANCZOS, decoded.box)
        webp, avif = renditions_of(original)[size], renditions_of(original, AVIF_THUMBNAILS)[size]
        assert decibels(picture_of(avif).convert("RGB"), pixels) > 35
        assert decibels(picture_of(avif).convert("RGB"), pixels) > decibels(picture_of(webp).convert("RGB"), pixels) - 1
        assert len(avif.data) < len(webp.data)

    def test_nothing_but_pixels_is_kept(self) -> None:
        exif = Image.Exif()
        exif[0x010E] = "where I live"
        exif[0x0112] = 6
        metadata: dict[str, Any] = {"exif": exif, "icc_profile": rgb_profile(ADOBE_RGB, 2.2), "xmp": b"<x:xmpmeta/>"}
        for rendition in renditions_of(encoded(scene(600, 400), "JPEG", **metadata), AVIF_THUMBNAILS).values():
            assert not {"exif", "icc_profile", "xmp"} & picture_of(rendition).info.keys()
            assert not any(box in rendition.data for box in (b"Exif", b"xmpmeta", b"prof", b"rICC", b"irot"))

    def test_transparency_survives_and_lends_no_colour_to_the_edge(self) -> None:
        image = Image.new("RGBA", (1000, 1000), (0, 0, 0, 0))
        image.paste((255, 255, 255, 255), (333, 333, 777, 777))
        rendition = picture_of(renditions_of(encoded(image, "PNG"), AVIF_THUMBNAILS)["256"])
        assert rendition.mode == "RGBA"
        alpha = rendition.getchannel("A")
        assert (alpha.getpixel((0, 0)), alpha.getpixel((128, 128))) == (0, 255)
        visible = alpha.point(lambda level: 255 * (level > 16))
        for band in "RGB":
            darkest = min(level for level, count in enumerate(rendition.getchannel(band).histogram(visible)) if count)
            assert darkest > 240

    @pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (3, 5)])
    def test_a_sliver_is_encoded_too(self, size: tuple[int, int]) -> None:
        for rendition in renditions_of(encoded(scene(*size), "PNG"), AVIF_THUMBNAILS).values():
            assert picture_of(rendition).size == (rendition.width, rendition.height)

    def test_the_same_bytes_give_the_same_renditions_on_any_number_of_cores(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = encoded(scene(700, 500), "JPEG")
        alone = transcode(data, AVIF_THUMBNAILS)
        monkeypatch.setattr(AvifImagePlugin, "DEFAULT_MAX_THREADS", 4)
        assert transcode(data, AVIF_THUMBNAILS).renditions == alone.renditions

    def test_the_encoder_is_recorded(self) -> None:
        transcoded = transcode(encoded(scene(30, 30), "PNG"), AVIF_THUMBNAILS)
        assert re.fullmatch(r"pillow [\d.]+ libvips [\d.]+ libavif [\d.]+ aom \S+", transcoded.encoder)

    def test_effort_is_the_encoders_speed(self) -> None:
        data = encoded(scene(300, 300), "PNG")
        expected = encoded(scene(300, 300), "AVIF", quality=67, speed=6, max_threads=1)
        assert renditions_of(data, AVIF_THUMBNAILS)["512"].data == expected


class TestWorkers:
    def test_failures_of_decoding_come_through(self) -> None:
        with pytest.raises(ImageFailure) as caught:
            transcode(b"<html>", WEBP_THUMBNAILS)
        assert caught.value.kind is FailureKind.NOT_AN_IMAGE

    def test_too_little_memory_is_out_of_memory(self) -> None:
        script = """
import resource, sys
from cdn_pipeline.failures import ImageFailure
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline.media.transcode import transcode
resource.setrlimit(resource.RLIMIT_AS, (150_000_000, 150_000_000))
try:
    transcode(sys.stdin.buffer.read(), WEBP_THUMBNAILS)
except ImageFailure as failure:
    print(failure.kind)
"""
        png = encoded(Image.new("RGB", (7000, 7000)), "PNG", compress_level=1)
        done = subprocess.run([sys.executable, "-c", script], input=png, capture_output=True, check=True)
        assert done.stdout.decode().strip() == FailureKind.OUT_OF_MEMORY

    def test_importing_it_loads_the_codecs_and_nothing_heavier(self) -> None:
        script = """
import sys
before = set(sys.modules)
import cdn_pipeline.media.transcode
new = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(*sorted(new), {"PIL._webp", "PIL._avif", "PIL.JpegImagePlugin", "PIL.PngImagePlugin"} <= set(sys.modules))
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
        assert done.stdout.split() == [
            *("PIL", "_cffi_backend", "_libvips", "blurhash_rs", "cdn_pipeline", "pyvips", "True")
        ]
