import random
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from cdn_pipeline.demo.photographs import make_photograph
from cdn_pipeline.demo.pictures import AVATARS_FOLDER, POSTS_FOLDER, Picture, PictureCache, Transform


def _transformed(stp: str, width: int, height: int) -> Image.Image:
    master = make_photograph(1, width=width, height=height, quality=80)
    return Image.open(BytesIO(Transform.parse(stp).apply(master, 80)))


@pytest.mark.parametrize(
    ("stp", "master", "served"),
    [
        ("dst-jpg_e35_p1080x1080", (1440, 1800), (1080, 1350)),
        ("dst-jpg_e35_p640x640_sh0.08", (1440, 1800), (640, 800)),
        ("c0.180.1440.1440a_dst-jpg_e35_s640x640_sh0.08", (1440, 1800), (640, 640)),
        ("dst-jpg_s150x150_tt6", (320, 320), (150, 150)),
        ("dst-jpg_e35_s640x640", (1080, 1350), (512, 640)),
        ("dst-jpg_e35", (1080, 566), (1080, 566)),
        ("", (1080, 566), (1080, 566)),
    ],
)
def test_stp_reduces_a_master_as_instagram_does(stp: str, master: tuple[int, int], served: tuple[int, int]) -> None:
    assert _transformed(stp, *master).size == served


def test_nothing_is_ever_enlarged() -> None:
    assert _transformed("dst-jpg_e35_p1080x1080", 640, 640).size == (640, 640)


def test_a_transform_that_changes_nothing_serves_the_masters_own_bytes() -> None:
    master = make_photograph(1, width=1080, height=1080, quality=80)
    assert Transform.parse("dst-jpg_e35_p1080x1080").apply(master, 80) is master


def test_the_format_follows_stp_and_not_the_suffix_of_the_file() -> None:
    assert _transformed("dst-webp_s150x150", 320, 320).format == "WEBP"
    assert _transformed("dst-jpg_s150x150", 320, 320).format == "JPEG"


@pytest.mark.parametrize("folder", [POSTS_FOLDER, AVATARS_FOLDER])
def test_an_invented_picture_is_found_again_at_its_path(folder: str) -> None:
    pictures = [Picture.invent(folder, random.Random(seed)) for seed in range(50)]
    assert [Picture.at(picture.path) for picture in pictures] == pictures
    assert len({picture.seed for picture in pictures}) == 50


@pytest.mark.parametrize("path", ["/", "/v/t51.2885-15/", "/v/t51.2885-15/../x_n.jpg", "/v/t99.1-15/1_2_3_n.jpg"])
def test_no_picture_is_at_any_other_path(path: str) -> None:
    assert Picture.at(path) is None


def test_the_square_crop_is_the_middle_of_the_master() -> None:
    pictures = [Picture.invent(POSTS_FOLDER, random.Random(seed)) for seed in range(100)]
    crops = {picture.size: picture.square_crop for picture in pictures}
    assert crops[1080, 1350] == "c0.135.1080.1080a_"
    assert crops[1080, 566] == "c257.0.566.566a_"
    assert crops[1080, 1080] == ""


def test_many_threads_asking_for_one_picture_get_the_same_bytes_and_leave_no_debris(tmp_path: Path) -> None:
    cache, picture = PictureCache(tmp_path), Picture.invent(AVATARS_FOLDER, random.Random(1))
    assert cache.stored(picture, "dst-jpg_s150x150") is None
    with ThreadPoolExecutor(8) as threads:
        bodies = set(threads.map(lambda _: cache.make(picture, "dst-jpg_s150x150"), range(16)))
    assert bodies == {cache.stored(picture, "dst-jpg_s150x150")}
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
