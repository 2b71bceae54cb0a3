"""Real files, good and hostile: skipped unless CDN_PIPELINE_CORPUS names the folder that holds them."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.media.decode import decode
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline.media.transcode import fit_inside, transcode
from cdn_pipeline_tests.media.pictures import difference

CORPUS = Path(os.environ.get("CDN_PIPELINE_CORPUS", "/nonexistent"))

pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason="CDN_PIPELINE_CORPUS is not set")

# One process per folder, with limits, so that a file that gets past our checks costs a test and not the machine.
TRANSCODE_ALL = """
import json, resource, sys, warnings
from pathlib import Path
from cdn_pipeline.failures import ImageFailure
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline.media.transcode import transcode

resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
warnings.simplefilter("error")
for path in sys.argv[1:]:
    outcome = {"path": path}
    try:
        transcoded = transcode(Path(path).read_bytes(), WEBP_THUMBNAILS)
    except ImageFailure as failure:
        outcome["failure"] = failure.kind
    else:
        outcome["original"] = [transcoded.width, transcoded.height]
        outcome["renditions"] = [[r.width, r.height, r.data.hex()] for r in transcoded.renditions]
    print(json.dumps(outcome), flush=True)
"""

MAY_FAIL = {"bombs", "corrupt", "heic", "other", "cmyk"}  # the last two for their TIFF, ICO and PSD files

REFUSED = {
    "bombs/pillow_decompression_bomb.gif": FailureKind.IMAGE_TOO_LARGE,
    "bombs/pillow_decompression_bomb.ico": FailureKind.UNSUPPORTED_FORMAT,
    "bombs/sharp_giant-image.jpg": FailureKind.IMAGE_TOO_LARGE,
    "bombs/syn_html_gzip_bomb.html.gz": FailureKind.NOT_AN_IMAGE,
    "bombs/syn_jpeg_lottapixel_64250.jpg": FailureKind.IMAGE_TOO_LARGE,
    "bombs/syn_jpeg_progressive_5000_scans.jpg": FailureKind.IMAGE_CORRUPT,
    "bombs/syn_png_12000x12000_rgb.png": FailureKind.IMAGE_TOO_LARGE,
    "bombs/syn_png_9400x9400_rgb.png": FailureKind.IMAGE_TOO_LARGE,
    "bombs/syn_png_iccp_50MB.png": FailureKind.IMAGE_CORRUPT,
    "bombs/syn_png_ztxt_50MB.png": FailureKind.IMAGE_CORRUPT,
    "bombs/syn_svg_ssrf_xxe.svg": FailureKind.NOT_AN_IMAGE,
    "bombs/syn_webp_vp8x_claims_16777216.webp": FailureKind.IMAGE_TOO_LARGE,
    "corrupt/body_bad_url_hash.jpg": FailureKind.NOT_AN_IMAGE,
    "corrupt/mp4_as_jpg.jpg": FailureKind.NOT_AN_IMAGE,
    "corrupt/pillow_truncated_image.png": FailureKind.IMAGE_CORRUPT,
    "corrupt/pillow_truncated_jpeg.jpg": FailureKind.IMAGE_CORRUPT,
    "corrupt/sharp_truncated.jpg": FailureKind.IMAGE_CORRUPT,
    "heic/exif_iphone_13_pro_max.HEIC": FailureKind.UNSUPPORTED_FORMAT,
    "icc/pillow_ultrahdr.jpg": FailureKind.IMAGE_CORRUPT,  # ends with its header
}


def folders() -> list[str]:
    return sorted(path.name for path in CORPUS.iterdir() if path.is_dir()) if CORPUS.is_dir() else []


def outcomes_of(paths: list[Path]) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", TRANSCODE_ALL, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{paths[len(outcomes)]}: {done.stderr[-2000:]}"
    return outcomes


def upright(name: str) -> Image.Image:
    return decode((CORPUS / name).read_bytes()).image


def thumbnail(name: str) -> Image.Image:
    """The 256 px rendition."""
    rendition = transcode((CORPUS / name).read_bytes(), WEBP_THUMBNAILS).renditions[0]
    return Image.open(BytesIO(rendition.data)).convert("RGB")


@pytest.mark.parametrize("folder", folders())
def test_every_file_becomes_renditions_of_the_right_size_or_fails_as_an_image(folder: str) -> None:
    paths = sorted(path for path in (CORPUS / folder).iterdir() if path.is_file())
    for outcome in outcomes_of(paths):
        if "failure" in outcome:
            assert outcome["failure"] in set(FailureKind)
            assert folder in MAY_FAIL or f"{folder}/{Path(outcome['path']).name}" in REFUSED, outcome["path"]
            continue
        original_width, original_height = outcome["original"]
        for size, (width, height, data) in zip(WEBP_THUMBNAILS.sizes, outcome["renditions"], strict=True):
            assert (width, height) == fit_inside(original_width, original_height, size.width, size.height)
            picture = Image.open(BytesIO(bytes.fromhex(data)))
            assert (picture.format, picture.size) == ("WEBP", (width, height))


def test_hostile_files_fail_as_what_they_are() -> None:
    outcomes = outcomes_of([CORPUS / name for name in REFUSED])
    assert [outcome.get("failure") for outcome in outcomes] == list(REFUSED.values())


@pytest.mark.parametrize("number", [0, 2, 6, 8])
def test_a_photograph_looks_the_same_from_every_orientation(number: int) -> None:
    reference = thumbnail("orientation/recurser_Landscape_1.jpg")
    assert difference(thumbnail(f"orientation/recurser_Landscape_{number}.jpg"), reference) < 3  # labels differ


@pytest.mark.parametrize("turn", ["rot1mir0", "rot2mir1", "rot3mir1"])
def test_an_avif_looks_the_same_from_every_irot_and_imir(turn: str) -> None:
    reference = upright("orientation/pillow_rot0mir0.avif")
    assert difference(upright(f"orientation/pillow_{turn}.avif"), reference) < 12  # labels differ; mirrored it is 39


@pytest.mark.parametrize(
    ("wide", "srgb"),
    [
        ("Google-Pixel2XL-16bit_acescg_g1_v4_krita", "Google-Pixel2XL-16bit_srgb8_v4_krita"),
        ("HUAWEI-EVA-L09-16bit_709_g1_dt", "HUAWEI-EVA-L09-16bit_srgb8_dt"),
    ],
)
def test_linear_and_wide_profiles_match_their_srgb_twins(wide: str, srgb: str) -> None:
    # Pillow reads 16-bit colour as 8 bits, which is coarse for linear light.
    assert difference(upright(f"icc/rawpixls_{wide}.png"), upright(f"icc/rawpixls_{srgb}.png")) < 4


def test_a_profile_that_swaps_channels_is_applied() -> None:
    wheel = upright("icc/widegamut_rgb-to-gbr-test.png").convert("RGB")
    red, green, blue = wheel.split()
    assert wheel.getpixel((500, 20)) == pytest.approx((255, 0, 0), abs=3)  # the sector labelled RED
    assert wheel.info == {}
    assert red.getextrema()[1] == green.getextrema()[1] == blue.getextrema()[1] == 255


def test_cmyk_looks_like_its_rgb_twin() -> None:
    assert difference(upright("cmyk/pillow_pil_sample_cmyk.jpg"), upright("cmyk/pillow_pil_sample_rgb.jpg")) < 12


def test_a_cmyk_profile_makes_a_difference_but_not_another_picture() -> None:
    with_profile, without = upright("cmyk/sharp_CMYK_profile.jpg"), upright("cmyk/sharp_CMYK_no_profile.jpg")
    assert 3 < difference(with_profile, without) < 40


def test_the_same_photograph_looks_the_same_from_every_kind_of_jpeg() -> None:
    reference = thumbnail("cmyk/libjxl_flower_im_q85_rgb.jpg")
    for variant in ("R13B", "progr"):
        assert difference(thumbnail(f"other/libjxl_flower_im_q85_420_{variant}.jpg"), reference) < 3
