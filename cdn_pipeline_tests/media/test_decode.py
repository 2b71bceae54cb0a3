import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo, putchunk

from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.media.decode import (
    DECODABLE,
    MAX_JPEG_SCANS,
    REDUCING_GAP,
    ImageFormat,
    decode,
    open_checked,
    sniff,
)
from cdn_pipeline_tests.media.pictures import (
    ADOBE_RGB,
    DISPLAY_P3,
    cmyk_profile_of_black_ink_only,
    difference,
    encoded,
    gray_profile,
    rgb_profile,
    scene,
)

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}}
UPRIGHT_TO_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
MP4 = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(40)


def failure_of(call: Callable[[bytes], object], data: bytes) -> FailureKind:
    with pytest.raises(ImageFailure) as caught:
        call(data)
    return caught.value.kind


def stored(upright: Image.Image, orientation: int) -> Image.Image:
    turn = UPRIGHT_TO_STORED[orientation]
    return upright if turn is None else upright.transpose(turn)


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def xmp_with_orientation(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


class TestFormats:
    @pytest.mark.parametrize("image_format", sorted(DECODABLE))
    def test_32_bytes_tell_the_format(self, image_format: ImageFormat) -> None:
        data = encoded(scene(20, 10), image_format.name)
        assert sniff(data[:32]) is image_format
        assert decode(data).format is image_format

    @pytest.mark.parametrize("image_format", ["TIFF", "BMP", "ICO", "JPEG2000"])
    def test_formats_off_the_allow_list_are_unsupported(self, image_format: str) -> None:
        assert failure_of(open_checked, encoded(scene(20, 10), image_format)) is FailureKind.UNSUPPORTED_FORMAT

    def test_heic_is_recognised_and_unsupported(self) -> None:
        assert sniff(HEIC) is ImageFormat.HEIC
        assert failure_of(open_checked, HEIC) is FailureKind.UNSUPPORTED_FORMAT

    def test_avif_under_a_generic_brand_is_avif(self) -> None:
        assert sniff(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") is ImageFormat.AVIF

    @pytest.mark.parametrize(
        "body", [b"", b"\xff", b"Bad URL hash", b"<!DOCTYPE html><html>", b"<svg/>", b"BMW 2002", MP4]
    )
    def test_anything_else_is_not_an_image(self, body: bytes) -> None:
        assert sniff(body) is None
        assert failure_of(decode, body) is FailureKind.NOT_AN_IMAGE

    def test_magic_alone_is_corrupt(self) -> None:
        assert failure_of(decode, b"\xff\xd8\xff") is FailureKind.IMAGE_CORRUPT
        assert failure_of(decode, b"\x89PNG\r\n\x1a\n") is FailureKind.IMAGE_CORRUPT


class TestLimits:
    def test_50_megapixels_pass_and_one_row_more_does_not(self) -> None:
        assert open_checked(encoded(Image.new("1", (10_000, 5_000)), "PNG")).size == (10_000, 5_000)
        assert failure_of(open_checked, encoded(Image.new("1", (10_000, 5_001)), "PNG")) is FailureKind.IMAGE_TOO_LARGE

    def test_a_side_beyond_65535_is_too_large(self) -> None:
        assert failure_of(open_checked, encoded(Image.new("1", (65_536, 1)), "PNG")) is FailureKind.IMAGE_TOO_LARGE

    def test_claimed_gigapixels_are_refused_by_the_header(self) -> None:
        jpeg = bytearray(encoded(Image.new("L", (16, 16)), "JPEG"))
        frame = jpeg.index(b"\xff\xc0")
        jpeg[frame + 5 : frame + 9] = b"\xfa\xfa\xfa\xfa"
        assert failure_of(open_checked, bytes(jpeg)) is FailureKind.IMAGE_TOO_LARGE

    @pytest.mark.parametrize("chunk", [b"iCCP", b"zTXt"])
    @pytest.mark.parametrize("before_pixels", [True, False])
    def test_compressed_metadata_that_inflates_to_50_mb_is_refused(self, chunk: bytes, before_pixels: bool) -> None:
        png = encoded(scene(20, 10), "PNG")
        bomb = BytesIO()
        putchunk(bomb, chunk, b"name\0\0" + zlib.compress(bytes(50_000_000)))
        at = 33 if before_pixels else len(png) - 12
        assert failure_of(decode, png[:at] + bomb.getvalue() + png[at:]) is FailureKind.IMAGE_CORRUPT

    def test_a_jpeg_of_endless_scans_is_refused(self) -> None:
        jpeg = encoded(scene(20, 10), "JPEG", progressive=True)
        assert failure_of(open_checked, jpeg + b"\xff\xda" * MAX_JPEG_SCANS) is FailureKind.IMAGE_CORRUPT


class TestOrientation:
    upright = scene(48, 32)

    @pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_orientation_comes_out_upright(self, image_format: str, orientation: int) -> None:
        picture = stored(self.upright, orientation)
        data = encoded(picture, image_format, exif=with_orientation(orientation), **LOSSLESS[image_format])
        decoded = decode(data)
        assert (decoded.width, decoded.height) == self.upright.size
        assert decoded.image.tobytes() == self.upright.tobytes()

    @pytest.mark.parametrize("image_format", ["JPEG", "AVIF"])  # AVIF: Pillow writes the turn as irot and imir
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_lossy_formats_come_out_upright_and_are_turned_once(self, image_format: str, orientation: int) -> None:
        data = encoded(stored(self.upright, orientation), image_format, exif=with_orientation(orientation), quality=95)
        assert difference(decode(data).image, self.upright) < 3

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_odd_orientations_change_nothing(self, orientation: int) -> None:
        data = encoded(self.upright, "PNG", exif=with_orientation(orientation))
        assert decode(data).image.tobytes() == self.upright.tobytes()

    def test_an_orientation_only_in_xmp_counts(self) -> None:
        metadata = PngInfo()
        metadata.add_itxt("XML:com.adobe.xmp", xmp_with_orientation(3).decode())
        png = encoded(stored(self.upright, 3), "PNG", pnginfo=metadata)
        jpeg = encoded(stored(self.upright, 6), "JPEG", xmp=xmp_with_orientation(6), quality=95)
        assert decode(png).image.tobytes() == self.upright.tobytes()
        assert difference(decode(jpeg).image, self.upright) < 3

    def test_in_avif_the_container_decides_and_xmp_does_not(self) -> None:
        data = encoded(self.upright, "AVIF", xmp=xmp_with_orientation(3), quality=95)
        assert difference(decode(data).image, self.upright) < 3

    @pytest.mark.parametrize("tail", [b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff\x01\x12"])
    def test_broken_exif_costs_neither_the_picture_nor_a_warning(self, tail: bytes) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            decoded = decode(encoded(self.upright, "JPEG", exif=b"Exif\0\0" + tail, quality=95))
        assert difference(decoded.image, self.upright) < 3
        assert not caught


class TestShrinkOnLoad:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_it_shows_the_same_picture_as_a_full_decode(self, orientation: int) -> None:
        upright = scene(401, 283)  # neither side divides by 4: the last column and row are padding
        data = encoded(stored(upright, orientation), "JPEG", exif=with_orientation(orientation), quality=95)
        full, shrunk = decode(data), decode(data, longest_side=32)
        assert shrunk.image.size == (101, 71)
        assert (shrunk.width, shrunk.height) == (full.width, full.height) == upright.size
        size, lanczos = (32, 23), Image.Resampling.LANCZOS
        resized = shrunk.image.resize(size, lanczos, shrunk.box)
        assert difference(resized, full.image.resize(size, lanczos, full.box)) < 0.5

    @given(width=st.integers(1, 700), height=st.integers(1, 700), longest_side=st.integers(1, 100))
    @settings(max_examples=40, deadline=None)
    def test_it_leaves_lanczos_enough_pixels(self, width: int, height: int, longest_side: int) -> None:
        decoded = decode(encoded(Image.new("L", (width, height)), "JPEG"), longest_side=longest_side)
        assert max(decoded.image.size) >= min(max(width, height), REDUCING_GAP * longest_side)
        assert 0 < decoded.box[2] <= decoded.image.width
        assert 0 < decoded.box[3] <= decoded.image.height

    def test_without_a_longest_side_all_pixels_are_decoded(self) -> None:
        assert decode(encoded(scene(400, 300), "JPEG")).image.size == (400, 300)


class TestColour:
    # Inside the gamut of sRGB, where the right answer does not depend on how a converter clips.
    colours = ((150, 100, 80), (200, 180, 160), (90, 120, 100), (128, 128, 128), (30, 30, 40), (255, 255, 255))

    @pytest.mark.parametrize("colorants", [ADOBE_RGB, DISPLAY_P3], ids=["adobe_rgb", "p3"])
    @pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
    def test_wide_gamut_becomes_srgb(
        self, colorants: tuple[tuple[float, float, float], ...], image_format: str
    ) -> None:
        profile = rgb_profile(colorants, gamma=2.19921875)
        for colour in self.colours:
            image = Image.new("RGB", (8, 8), colour)
            data = encoded(image, image_format, icc_profile=profile, **LOSSLESS[image_format])
            pixel = decode(data).image.getpixel((4, 4))
            assert pixel == pytest.approx(srgb_of(colour, colorants), abs=2)

    def test_wide_gamut_jpeg_becomes_srgb(self) -> None:
        image = Image.new("RGB", (16, 16), (150, 100, 80))
        data = encoded(image, "JPEG", icc_profile=rgb_profile(ADOBE_RGB, gamma=2.19921875), quality=100)
        assert decode(data).image.getpixel((8, 8)) == pytest.approx(srgb_of((150, 100, 80), ADOBE_RGB), abs=3)

    def test_a_profile_keeps_alpha_as_it_is(self) -> None:
        image = Image.new("RGBA", (8, 8), (150, 100, 80, 77))
        decoded = decode(encoded(image, "PNG", icc_profile=rgb_profile(ADOBE_RGB, gamma=2.19921875)))
        assert decoded.image.getpixel((4, 4)) == pytest.approx((*srgb_of((150, 100, 80), ADOBE_RGB), 77), abs=2)

    def test_a_picture_tagged_srgb_is_not_touched(self) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        assert decode(encoded(scene(64, 64), "PNG", icc_profile=profile)).image.tobytes() == scene(64, 64).tobytes()

    @pytest.mark.parametrize("mode", ["L", "LA"])
    def test_gray_profiles_count(self, mode: str) -> None:
        linear = Image.new(mode, (8, 8), 55 if mode == "L" else (55, 99))
        pixel = decode(encoded(linear, "PNG", icc_profile=gray_profile(gamma=1.0))).image.getpixel((4, 4))
        level = encode_srgb(55 / 255)
        assert pixel == pytest.approx((level,) * 3 if mode == "L" else (level, level, level, 99), abs=1)

    @pytest.mark.parametrize(
        "profile",
        [b"no profile", rgb_profile(ADOBE_RGB, 2.2)[:200], gray_profile(1.0), cmyk_profile_of_black_ink_only()],
        ids=["garbage", "truncated", "gray", "cmyk"],
    )
    def test_a_profile_that_does_not_fit_is_ignored(self, profile: bytes) -> None:
        assert decode(encoded(scene(64, 64), "PNG", icc_profile=profile)).image.tobytes() == scene(64, 64).tobytes()

    def test_cmyk_without_a_profile_is_light_left_by_ink_and_black(self) -> None:
        data = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 51)), "JPEG", quality=100)
        assert decode(data).image.getpixel((8, 8)) == pytest.approx((0, 204, 204), abs=2)

    def test_cmyk_goes_through_its_profile(self) -> None:
        profile = cmyk_profile_of_black_ink_only()
        cyan = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100, icc_profile=profile)
        black = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG", quality=100, icc_profile=profile)
        assert decode(cyan).image.getpixel((8, 8)) == pytest.approx((255, 255, 255), abs=2)
        assert decode(black).image.getpixel((8, 8)) == pytest.approx((0, 0, 0), abs=2)

    def test_16_bit_gray_is_scaled_and_not_clipped(self) -> None:
        gradient = Image.frombytes("I;16", (256, 1), b"".join((x * 257).to_bytes(2, "little") for x in range(256)))
        decoded = decode(encoded(gradient, "PNG"))
        assert [decoded.image.getpixel((x, 0)) for x in range(256)] == [(x, x, x) for x in range(256)]

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
    def test_opaque_pictures_come_out_as_rgb(self, mode: str) -> None:
        image_format = "JPEG" if mode == "CMYK" else "PNG"
        assert decode(encoded(scene(32, 32).convert(mode), image_format)).image.mode == "RGB"


class TestAlpha:
    def test_alpha_that_hides_nothing_is_dropped(self) -> None:
        assert decode(encoded(scene(32, 32).convert("RGBA"), "PNG")).image.mode == "RGB"

    @pytest.mark.parametrize("image_format", ["PNG", "GIF"])
    def test_a_transparent_palette_entry_is_transparent(self, image_format: str) -> None:
        image = Image.new("P", (4, 4), 0)
        image.putpalette(bytes((255, 0, 0, 0, 255, 0)))
        image.putpixel((1, 0), 1)
        decoded = decode(encoded(image, image_format, transparency=1)).image
        assert decoded.getpixel((0, 0)) == (255, 0, 0, 255)
        assert decoded.getpixel((1, 0)) == (0, 255, 0, 0)

    def test_a_palette_with_shades_of_alpha_keeps_them(self) -> None:
        image = Image.new("P", (4, 4), 0)
        image.putpalette(bytes((255, 0, 0, 0, 255, 0)))
        image.putpixel((1, 0), 1)
        decoded = decode(encoded(image, "PNG", transparency=bytes((200, 50)))).image
        assert decoded.getpixel((0, 0)) == (255, 0, 0, 200)
        assert decoded.getpixel((1, 0)) == (0, 255, 0, 50)

    @pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 8, 9))])
    def test_a_transparent_colour_is_transparent(self, mode: str, colour: Any) -> None:
        image = Image.new(mode, (4, 4), 0)
        image.putpixel((1, 0), colour)
        decoded = decode(encoded(image, "PNG", transparency=colour)).image
        assert decoded.getpixel((0, 0)) == (0, 0, 0, 255)
        assert decoded.getchannel("A").getpixel((1, 0)) == 0

    def test_a_transparent_16_bit_gray_is_transparent(self) -> None:
        image = Image.frombytes("I;16", (2, 1), (40_000).to_bytes(2, "little") + (5_000).to_bytes(2, "little"))
        alpha = decode(encoded(image, "PNG", transparency=40_000)).image.getchannel("A")
        assert [alpha.getpixel((x, 0)) for x in range(2)] == [0, 255]


class TestAnimation:
    frames = tuple(Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue"))

    @pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
    def test_the_first_frame_is_taken(self, image_format: str) -> None:
        first, *others = self.frames
        options = LOSSLESS.get(image_format, {})
        data = encoded(first, image_format, save_all=True, append_images=others, duration=50, **options)
        assert decode(data).image.getpixel((5, 5)) == (255, 0, 0)

    @pytest.mark.parametrize("blend", [0, 1])
    def test_the_default_image_of_an_apng_is_no_frame(self, blend: int) -> None:
        stand_in = Image.new("RGBA", (20, 10), "red")
        frames = [Image.new("RGBA", (20, 10), (0, 255, 0, alpha)) for alpha in (128, 255)]
        animation: dict[str, Any] = {"save_all": True, "append_images": frames, "default_image": True, "blend": blend}
        decoded = decode(encoded(stand_in, "PNG", duration=50, **animation))
        assert decoded.image.getpixel((5, 5)) == (0, 255, 0, 128)

    def test_around_a_first_frame_smaller_than_its_apng_nothing_shows(self) -> None:
        def pixels(width: int, height: int, colour: bytes) -> bytes:
            return zlib.compress((b"\0" + colour * width) * height)

        apng = BytesIO(b"\x89PNG\r\n\x1a\n")
        apng.seek(8)
        putchunk(apng, b"IHDR", struct.pack(">2I5B", 20, 10, 8, 6, 0, 0, 0))
        putchunk(apng, b"acTL", struct.pack(">2I", 1, 0))
        putchunk(apng, b"IDAT", pixels(20, 10, b"\xff\0\0\xff"))
        putchunk(apng, b"fcTL", struct.pack(">5I2H2B", 0, 4, 4, 2, 2, 1, 10, 0, 1))
        putchunk(apng, b"fdAT", struct.pack(">I", 1), pixels(4, 4, b"\0\xff\0\xff"))
        putchunk(apng, b"IEND")
        decoded = decode(apng.getvalue()).image
        assert decoded.getpixel((3, 3)) == (0, 255, 0, 255)
        assert decoded.getchannel("A").getpixel((10, 5)) == 0

    def test_thousands_of_frames_do_not_matter(self) -> None:
        others = [Image.new("L", (2, 2), i % 256) for i in range(1, 2000)]
        data = encoded(Image.new("L", (2, 2)), "GIF", save_all=True, append_images=others)
        assert decode(data).image.getpixel((0, 0)) == (0, 0, 0)


class TestDamage:
    @pytest.mark.parametrize("image_format", sorted(DECODABLE))
    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
    def test_truncated_data_is_corrupt(self, image_format: ImageFormat, progressive: bool, kept: float) -> None:
        data = encoded(scene(200, 200), image_format.name, progressive=progressive)
        assert failure_of(decode, data[: int(len(data) * kept)]) is FailureKind.IMAGE_CORRUPT

    @pytest.mark.parametrize("image_format", sorted(DECODABLE))
    @given(data=st.data())
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_mutated_bytes_decode_or_fail_as_an_image(self, image_format: ImageFormat, data: st.DataObject) -> None:
        exif = with_orientation(6)
        profile = rgb_profile(ADOBE_RGB, 2.2)
        mutated = bytearray(encoded(scene(40, 30), image_format.name, exif=exif, icc_profile=profile))
        for _ in range(data.draw(st.integers(1, 8))):
            at = data.draw(st.integers(0, len(mutated) - 1))
            mutated[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                decoded = decode(bytes(mutated), longest_side=8)
            except ImageFailure as failure:
                assert len(failure.detail) <= 200  # noqa: PT017 — the other outcome is a picture
            else:
                assert decoded.image.mode in {"RGB", "RGBA"}
                assert not decoded.image.info

    @given(st.binary(max_size=200))
    @settings(max_examples=60, deadline=None)
    def test_a_magic_with_noise_behind_it_fails_as_an_image(self, noise: bytes) -> None:
        for magic in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\1\0WEBPVP8 ", b"\0\0\0\x14ftypavif"):
            with pytest.raises(ImageFailure):
                decode(magic + noise)

    def test_a_failure_survives_pickling(self) -> None:
        with pytest.raises(ImageFailure) as caught:
            decode(encoded(scene(200, 200), "PNG")[:500])
        for failure in (caught.value, ImageFailure(FailureKind.RATE_LIMITED, "429", retry_after_seconds=7.5)):
            copy = pickle.loads(pickle.dumps(failure))
            assert (copy.kind, copy.detail, str(copy)) == (failure.kind, failure.detail, str(failure))
            assert copy.retry_after_seconds == failure.retry_after_seconds


def srgb_of(colour: tuple[int, ...], colorants: tuple[tuple[float, float, float], ...]) -> tuple[float, ...]:
    """What a gamma 2.2 colour with these primaries is in sRGB, by the formulas of IEC 61966-2-1, adapted to D50."""
    linear = [(level / 255) ** 2.19921875 for level in colour]
    xyz = [sum(level * primary[axis] for level, primary in zip(linear, colorants, strict=True)) for axis in range(3)]
    xyz_to_srgb = (
        (3.1338561, -1.6168667, -0.4906146),
        (-0.9787684, 1.9161415, 0.0334540),
        (0.0719453, -0.2289914, 1.4052427),
    )
    return tuple(encode_srgb(sum(a * b for a, b in zip(row, xyz, strict=True))) for row in xyz_to_srgb)


def encode_srgb(linear: float) -> float:
    linear = min(max(linear, 0.0), 1.0)
    return 255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055)
