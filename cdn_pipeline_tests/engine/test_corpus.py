"""Real files, good and hostile, in one whole run: skipped unless CDN_PIPELINE_CORPUS names their folder."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO

import pytest
import sqlalchemy as sa
from PIL import Image, ImageCms, ImageOps

from benchmarks.corpus import PUBLISHED, add_profiles, endings, files_in, profile_id, serving
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.media.decode import REDUCING_GAP
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS, Size
from cdn_pipeline.media.resample import resample
from cdn_pipeline.media.transcode import fit_inside
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.engine.runs import assert_nothing_in_hand, objects_in, rows, run
from cdn_pipeline_tests.media.pictures import decibels, encoded, riff_chunks
from cdn_pipeline_tests.media.test_corpus import CORPUS, MAY_FAIL, REFUSED

pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason="CDN_PIPELINE_CORPUS is not set")

PIXELS_ONLY = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH"}

ALLOWED = {"JPEG", "PNG", "WEBP", "GIF", "AVIF"}
RECOGNISED = {"TIFF", "BMP", "ICO", "PSD", "HEIF", "JPEG2000"}


@dataclass(frozen=True)
class Mirrored:
    """How every file ended, and the renditions of those that were published, by file and size."""

    endings: Mapping[str, str]
    renditions: Mapping[tuple[str, str], bytes]


@pytest.fixture(scope="module")
def _cache() -> dict[str, Mirrored]:
    return {}


@pytest.fixture
def mirrored(_cache: dict[str, Mirrored], settings: Settings, catalog: sa.Engine, empty_database: str) -> Mirrored:
    """One run serves all tests here."""
    if not _cache:
        files = files_in(CORPUS)
        source = sa.create_engine(empty_database)
        quick = replace(INSTAGRAM, recipe=replace(INSTAGRAM.recipe, effort=0))
        with serving(CORPUS) as base_url:
            add_profiles(source, files, base_url)
            run(settings, collection=quick)
        source.dispose()
        assert_nothing_in_hand(catalog)
        objects = objects_in(settings.objects_url)
        names = {str(profile_id(file)): file for file in files}
        query = """SELECT a.source_id, r.size_name, r.path FROM cdn_image_renditions r
                   JOIN cdn_image_assets a ON a.id = r.asset_id WHERE r.state = 'current'"""
        renditions = {
            (names[row["source_id"]], row["size_name"]): objects[row["path"].removeprefix("/")]
            for row in rows(catalog, query)
        }
        _cache["run"] = Mirrored(endings(catalog, files), renditions)
    return _cache["run"]


def manifest_formats() -> dict[str, str]:
    with (CORPUS / "MANIFEST.tsv").open(newline="") as file:
        return {row["file"]: row["format"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def right_endings(file: str, image_format: str) -> set[str]:
    """How a file may end, by what it is."""
    if file in REFUSED:
        return {REFUSED[file]}
    if file.partition("/")[0] not in MAY_FAIL:
        return {PUBLISHED}
    if image_format in RECOGNISED:
        return {"unsupported_format"}
    if image_format in ALLOWED:
        return {PUBLISHED, "image_corrupt", "image_too_large"}
    return {"image_corrupt", "image_too_large", "not_an_image", "unsupported_format"}


def test_every_file_ends_published_or_failed_as_what_it_is(mirrored: Mirrored) -> None:
    formats = manifest_formats()
    assert set(mirrored.endings) == set(formats)
    wrong = {
        file: ending for file, ending in mirrored.endings.items() if ending not in right_endings(file, formats[file])
    }
    assert wrong == {}


def test_no_rendition_carries_anything_but_pixels(mirrored: Mirrored) -> None:
    published = [file for file, ending in mirrored.endings.items() if ending == PUBLISHED]
    assert len(mirrored.renditions) == 2 * len(published) > 200
    assert {chunk for data in mirrored.renditions.values() for chunk in riff_chunks(data)} <= PIXELS_ONLY


def reference(data: bytes) -> Image.Image:
    """The picture as Pillow's own tools make it: full decode, upright, to sRGB, RGBA."""
    image: Image.Image = Image.open(BytesIO(data))
    if image.format == "AVIF":
        image.info.pop("xmp", None)  # its container has turned it already, and Pillow would turn it twice
    if getattr(image, "default_image", False):  # an APNG's stand-in for viewers that know no frames
        image.seek(1)
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colour = image if image.mode in {"L", "CMYK"} else image.convert("RGB")
    if profile:
        try:
            made = ImageCms.profileToProfile(
                colour,
                ImageCms.ImageCmsProfile(BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        except ImageCms.PyCMSError:
            made = None
        colour = made or colour
    picture = colour.convert("RGB")
    if alpha and min(alpha.tobytes()) < 255:
        picture.putalpha(alpha)
    return picture


def on_gray(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "gray"), image.convert("RGBA")).convert("RGB")


def resampled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """One size, made beside the others: it may be made from a larger one."""
    sizes = {fit_inside(*image.size, each.width, each.height) for each in WEBP_THUMBNAILS.sizes}
    return resample(image, (0, 0, *image.size), sizes)[size]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd files
@pytest.mark.parametrize("size", WEBP_THUMBNAILS.sizes, ids=lambda size: size.name)
def test_every_picture_has_its_exact_size_and_looks_like_its_reference(mirrored: Mirrored, size: Size) -> None:
    """Both are WebP of the same quality, so that the codec's own loss does not count; shrink on load does (40 dB)."""
    compared = 0
    for (file, name), data in mirrored.renditions.items():
        if name == size.name:
            expected = reference((CORPUS / file).read_bytes())
            rendition = Image.open(BytesIO(data))
            assert rendition.size == fit_inside(*expected.size, size.width, size.height), file
            made = encoded(resampled(expected, rendition.size), "WEBP", quality=85, method=0)
            found = decibels(on_gray(rendition), on_gray(Image.open(BytesIO(made))))
            assert found > (38 if max(expected.size) > REDUCING_GAP * 512 else 60), file
            by_pillow = expected.resize(rendition.size, Image.Resampling.LANCZOS)
            assert decibels(on_gray(resampled(expected, rendition.size)), on_gray(by_pillow)) > 45, file
            compared += 1
    assert compared > 100
