"""What is compared is the same work, and what peers report is read as they mean it."""

import json
from importlib import import_module
from io import BytesIO
from random import Random

import pytest
from PIL import Image

from benchmarks.peers.against_img2dataset import read_reports
from benchmarks.peers.against_sharp import Transcoded, psnr
from benchmarks.peers.only_512 import RECIPE, defs
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS


def test_img2dataset_s_time_is_from_its_first_shard_s_start_to_its_last_one_s_end() -> None:
    shards = [
        {"successes": 10, "start_time": 100.0, "end_time": 130.0, "duration": 30.0},
        {"successes": 9, "start_time": 102.5, "end_time": 125.0, "duration": 22.5},
    ]
    assert read_reports(map(json.dumps, shards)) == (19, 30.0)


def test_sharp_s_time_has_no_start_up() -> None:
    said = {"images": 30, "seconds": 1.5, "cpuSeconds": 2.7, "bytes": 900, "versions": {"sharp": "0.35.5"}}
    run = Transcoded.read(json.dumps(said))
    assert run.measured.rate == run.measured.whole_rate == 20
    assert run.measured.cpu_ms == 90
    assert run.versions == {"sharp": "0.35.5"}


def test_the_recipe_against_img2dataset_is_512_px_alone_at_libwebp_s_default_method() -> None:
    assert RECIPE.longest_sides == [512]
    assert (RECIPE.format, RECIPE.quality, RECIPE.effort) == ("webp", 85, 4)
    assert defs.resources is not None
    assert defs.resources["mirror"].collection.recipes == (RECIPE,)


def test_the_celery_task_has_the_recipe_s_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("celery")
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    monkeypatch.setenv("CATALOG_DATABASE_URL", "postgresql+psycopg://")
    monkeypatch.setenv("MEDIA_FOLDER", "nowhere")
    tasks = import_module("benchmarks.peers.celery_tasks")
    assert list(tasks.SIZES) == WEBP_THUMBNAILS.longest_sides
    settings = tasks.QUALITY, tasks.METHOD
    assert settings == (WEBP_THUMBNAILS.quality, WEBP_THUMBNAILS.effort)


@pytest.fixture
def original() -> bytes:
    return encoded(Image.frombytes("RGB", (40, 40), Random(1).randbytes(40 * 40 * 3)))


def encoded(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_psnr_of_the_reference_itself_is_infinite(original: bytes) -> None:
    small = Image.open(BytesIO(original)).resize((20, 20), Image.Resampling.LANCZOS)
    assert psnr(original, encoded(small)) == float("inf")


def test_psnr_of_an_error_of_one_level_everywhere_is_48_db() -> None:
    grey = encoded(Image.new("RGB", (40, 40), (100, 100, 100)))
    other = encoded(Image.new("RGB", (20, 20), (101, 101, 101)))
    assert psnr(grey, other) == pytest.approx(48.13, abs=0.01)
