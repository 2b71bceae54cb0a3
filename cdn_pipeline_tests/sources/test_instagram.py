import base64
import hashlib
import json
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.sources.instagram import MAX_URL_LENGTH, UNCROPPED_RANK, UNKNOWN_SIDE, media_key, parse, unescape

DATA = Path(__file__).parent / "data"
SIGNED_URLS = (DATA / "signed_urls.txt").read_text().split()
PAYLOADS: dict[str, list[dict[str, Any]]] = json.loads((DATA / "payloads.json").read_text())
WHOLE = UNCROPPED_RANK

# identity, expiry in UTC and rank of each line of signed_urls.txt
EXPECTED = [
    ("file:411417356_167279297592691_2435643931528596965_n", "2024-03-10 08:39:07", WHOLE + 640),
    ("file:242218572_678863172356299_8898412128966899638_n", "2024-03-10 01:35:25", WHOLE + 640),
    ("file:578315675_793112962228968_3257551295512813334_n", "2024-03-10 16:24:38", WHOLE + 1080),
    ("file:929317494_152114511499394_8744632988158828988_n", "2024-03-10 20:58:54", WHOLE + 150),
    ("file:487256731_442314118897621_8434542854391332632_n", "2024-03-09 14:46:02", WHOLE + 150),
    ("file:328923687_168334817723427_1197887515299754758_n", "2024-03-10 11:08:46", WHOLE + 150),
    ("file:825314713_8837618642519497_5128491361128298135_n", "2024-03-10 23:56:03", 640),
    ("file:296729565_646164614361272_1812548336226858847_n", "2024-03-09 21:57:23", 640),
    ("file:873721578_8295358283497514_2591158533225646144_n", "2024-03-07 23:11:24", 640),
    ("file:557928323_781287824836929_6934161972812749575_n", "2024-03-09 23:01:01", 640),
    ("file:761558636_9899889288279666_5221379778445283694_n", "2024-03-10 07:03:52", 640),
    ("file:824375293_2532719682321624_7638519995179992138_n", "2024-03-07 15:15:02", 640),
    ("file:744735737_212584727763436_9739281674678532332_n", "2021-06-12 14:11:24", WHOLE + 1080),
    ("file:617424656_3486934256513495_4869689497514465917_n", "2024-03-10 04:41:15", 240),
    ("file:492359778_765917122748625_2332559359786643822_n", "2024-03-10 07:43:31", WHOLE + 800),
    ("file:494914553_391544128176116_4713575225349142822_n", "2024-03-09 23:26:53", WHOLE + 1080),
    ("file:228634382_572999848875916_6928666376256823914_n", "2021-06-11 02:33:53", WHOLE + 150),
    ("file:523646122_59647723343117563_4994432838379754763_n", "2024-03-09 21:03:05", 640),
    ("file:813575728_64524789115316988_3987826438717133772_n", "2024-03-10 02:17:30", 640),
    ("file:338131793_75355287586169462_9623817563421655455_n", "2024-03-10 13:13:18", 640),
    ("file:673536437_78366316931628561_5946179131613266485_n", "2026-02-17 18:42:45", 640),
    ("pk:6169799617578165135", "2022-09-15 19:29:52", WHOLE + 640),
    ("file:374945823_76797562687469344_6591182439461558822_n", "2026-04-09 01:44:28", 640),
    ("file:895511999_66731958764998895_1539649216515811346_n", "2026-08-18 20:11:26", WHOLE + 640),
    ("file:33261642_682981334262428_9312596265237981322_n", "2021-01-31 20:36:58", 640),
    ("file:345865197_158711523593633_6732655378988199313_n", "2021-06-11 15:16:05", WHOLE + 150),
    ("file:414738323_196875941784541_7362531689629436687_n", "2021-06-12 01:16:44", WHOLE + UNKNOWN_SIDE),
    ("file:382466616_724662346493262_6124733915213677313_n", "2021-06-13 08:37:22", WHOLE + UNKNOWN_SIDE),
    ("pk:7556612824398619144", "2021-06-11 06:35:35", WHOLE + UNKNOWN_SIDE),
    ("file:66183258_5895758464528674_7991124888_a", "2021-09-06 08:57:51", WHOLE + 150),
    ("file:375823665_77376358939536427_4935199162794689941_n", "2026-08-18 20:34:16", WHOLE + 150),
    ("file:135746772_493356439969356_977642465584289657_n", "2021-08-11 23:33:35", WHOLE + 1080),
    ("file:551157839_133121446726962_2514156774678471993_n", "2021-08-11 02:02:24", WHOLE + 1080),
    ("file:228634382_572999848875916_6928666376256823914_n", "2021-06-13 19:21:53", WHOLE + 150),
    ("file:228634382_572999848875916_6928666376256823914_n", "2021-06-13 19:21:53", WHOLE + 150),
    ("file:285831714_668595748536744_4899922328368529815_n", "2021-06-13 05:28:38", WHOLE + 150),
    ("file:743881983_16794789719294334_3761551782179442788_n", "2025-10-04 03:03:59", 640),
    ("file:873893813_22766935329984912_6156367497347293663_n", "2026-05-27 02:42:44", WHOLE + 858),
    ("file:43261981_328774748744439_2248947131461355626_n", "2026-08-14 19:00:27", WHOLE + 320),
    ("pk:327476656385376589756724686422125624", "2026-04-12 23:30:04", WHOLE + 750),
    ("file:536755283_74467977937993157_1863346124365252643_n", "2026-04-13 07:02:39", 640),
    ("file:366849253_46452611984195534_8841163137988939242_n", "2026-04-13 01:13:39", WHOLE + 150),
]

PICTURE = "https://scontent.cdninstagram.com/v/t51.2885-15/123_456_789_n.jpg"
signed_urls = st.sampled_from(SIGNED_URLS)
opaque = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=40)
hosts = st.one_of(
    st.sampled_from(["http://127.0.0.1:8123", "http://[::1]:80", "https://instagram.fhel3-1.fna.fbcdn.net"]),
    st.from_regex(r"https://scontent-[a-z]{3}[1-9]-[1-9]\.cdninstagram\.com", fullmatch=True),
)


def encoded(text: str) -> str:
    return quote(base64.b64encode(text.encode()).decode(), safe="")


def efg(**tags: str) -> str:
    return "efg=" + encoded(json.dumps(tags))


@pytest.mark.parametrize(("url", "expected"), list(zip(SIGNED_URLS, EXPECTED, strict=True)))
def test_real_signed_urls_are_read(url: str, expected: tuple[str, str, int]) -> None:
    source = parse(url)
    identity, expires_at, rank = expected
    assert source.url == url
    assert source.identity == identity
    assert source.expires_at == datetime.fromisoformat(expires_at).replace(tzinfo=UTC)
    assert source.rank == rank


# Identity


@given(url=signed_urls, host=hosts, oe=st.integers(0x10000000, 0xFFFFFFFF), data=st.data())
def test_the_same_picture_signed_again_keeps_identity_and_rank(
    url: str, host: str, oe: int, data: st.DataObject
) -> None:
    parts = urlsplit(url)
    pairs = [pair.partition("=")[::2] for pair in parts.query.split("&")]
    signed_again = [
        (name, f"{oe:X}" if name == "oe" else data.draw(opaque) if name == "oh" or name.startswith("_nc_") else value)
        for name, value in data.draw(st.permutations(pairs))
    ]
    again = parse(f"{host}{parts.path}?" + "&".join(f"{name}={value}" for name, value in signed_again))
    assert (again.identity, again.rank) == (parse(url).identity, parse(url).rank)
    assert again.expires_at == datetime.fromtimestamp(oe, UTC)


@pytest.mark.parametrize("suffix", ["jpg", "heic", "webp", "webp.jpg"])
def test_the_suffix_of_a_file_is_no_part_of_its_identity(suffix: str) -> None:
    url = f"https://scontent.cdninstagram.com/v/t51.82787-15/123_456_789_n.{suffix}?stp=dst-jpg_e35"
    assert parse(url).identity == "file:123_456_789_n"


@pytest.mark.parametrize(
    "path",
    [
        "/v/t51.2885-15/e35/p1080x1080/123_456_789_n.jpg",
        "/v/t51.2885-15/sh0.08/e35/c0.74.752.752a/s640x640/123_456_789_n.jpg",
        "/vp/0123456789abcdef0123456789abcdef/5E85B000/t51.2885-19/s150x150/123_456_789_n.jpg",
        "/v/t39.30808-6/123_456_789_n.jpg",
    ],
)
def test_old_and_new_paths_share_the_identity_of_the_file(path: str) -> None:
    assert parse("https://scontent.cdninstagram.com" + path).identity == "file:123_456_789_n"
    assert parse("http://127.0.0.1:9000" + path).identity == "file:123_456_789_n"


@pytest.mark.parametrize(
    "key",
    [
        "MTIzNDU2Nzg5MDEyMzQ1Njc4OQ%3D%3D.2-ccb7-5",
        "MTIzNDU2Nzg5MDEyMzQ1Njc4OQ==.3-ccb1-7",
        "MTIzNDU2Nzg5MDEyMzQ1Njc4OQ%3D%3D.2",
        "MTIzNDU2Nzg5MDEyMzQ1Njc4OQ-ccb7-5",
        "MTIzNDU2Nzg5MDEyMzQ1Njc4OQ",
    ],
)
def test_a_cache_key_tells_the_media_pk(key: str) -> None:
    assert parse(f"{PICTURE}?ig_cache_key={key}").identity == "pk:1234567890123456789"
    assert parse(f"http://127.0.0.1:9000/some/other.jpg?ig_cache_key={key}").identity == "pk:1234567890123456789"


@pytest.mark.parametrize(
    "key",
    [
        encoded("anonymous_profile_pic") + ".2",
        "HSG6VDkshNicP2K-XPBvh-wovgONjyLBZUEJ1024298e-rfo0-2",
        encoded("1" * 65) + ".2-ccb7-5",
        encoded("٣٤٥") + ".2-ccb7-5",
        "MzY2M.2-ccb7-5",
        "%FF%FE",
        ".2-ccb7-5",
        "",
    ],
)
def test_a_cache_key_without_a_media_pk_leaves_the_file_name(key: str) -> None:
    assert parse(f"{PICTURE}?ig_cache_key={key}").identity == "file:123_456_789_n"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/photos/cat.jpg",
        "https://example.com/v/tshirts/1_n.jpg",
        "https://example.com/v/t51.2885-15/.jpg",
        f"https://example.com/v/t51.2885-15/{'9' * 121}.jpg",
        "https://example.com",
    ],
)
def test_any_other_url_is_identified_by_all_of_it(url: str) -> None:
    identity = parse(url).identity
    assert identity == "url:" + hashlib.sha256(url.encode()).hexdigest()
    assert parse(url + "?size=2").identity != identity


@given(opaque, st.text("0123456789", max_size=200), st.text("0123456789", max_size=200))
def test_an_identity_fits_an_indexed_column(name: str, stem: str, pk: str) -> None:
    url = f"https://example.com/v/t51.2885-15/{stem}_{name}.jpg?ig_cache_key={encoded(pk)}.2-ccb7-5"
    assert len(parse(url).identity) <= 128


def test_only_the_first_carousel_child_has_the_identity_of_its_post() -> None:
    carousels = [post for post in PAYLOADS["posts"] if "edge_sidecar_to_children" in post]
    assert carousels
    for post in carousels:
        children = [edge["node"]["display_url"] for edge in post["edge_sidecar_to_children"]["edges"]]
        identities = [parse(url).identity for url in children]
        assert len(set(identities)) == len(identities)
        assert identities.index(parse(post["display_url"]).identity) == 0


# Rank


@pytest.mark.parametrize("post", PAYLOADS["posts"], ids=lambda post: post["id"])
def test_a_posts_display_url_outranks_its_thumbnail(post: dict[str, Any]) -> None:
    display, thumbnail = parse(post["display_url"]), parse(post["thumbnail_src"])
    assert display.identity == thumbnail.identity
    assert display.rank > thumbnail.rank


@pytest.mark.parametrize("profile", PAYLOADS["profiles"], ids=["same_size", "larger"])
def test_the_hd_avatar_never_ranks_below_the_plain_one(profile: dict[str, str]) -> None:
    plain, hd = parse(profile["profile_pic_url"]), parse(profile["profile_pic_url_hd"])
    assert plain.identity == hd.identity
    assert hd.rank >= plain.rank


def test_ranks_order_the_variants_of_one_picture() -> None:
    original = efg(vencode_tag="image_urlgen.1440x1800.sdr")
    variants = [
        f"stp=c0.180.1440.1440a_dst-jpg_e35_s150x150&{original}",
        f"stp=c0.180.1440.1440a_dst-jpg_e35_s640x640_sh0.08&{original}",
        f"stp=dst-jpg_e0_s150x150_tt6&{original}",
        f"stp=dst-jpg_e35_p640x640_sh0.08&{original}",
        f"stp=dst-jpg_e35_p1080x1080&{original}",
        f"stp=dst-jpg_e35&{original}",
    ]
    ranks = [parse(f"{PICTURE}?{variant}").rank for variant in variants]
    assert ranks == [150, 640, WHOLE + 150, WHOLE + 640, WHOLE + 1080, WHOLE + 1800]


@pytest.mark.parametrize(
    ("tag", "side"),
    [
        ("xpids.2268x4032.sdr.C3", 4032),
        ("image_urlgen.720x900.sdr", 900),
        ("profile_pic.django.855.c1", 855),
        ("CAROUSEL_ITEM.xpids.1080.sdr.regular_photo.C3", 1080),
        ("CAROUSEL_ITEM.best_image_urlgen.C3", UNKNOWN_SIDE),
        ("image_urlgen.0x0.sdr", UNKNOWN_SIDE),
        ("image_urlgen.9999999x1.sdr", UNKNOWN_SIDE),
    ],
)
@pytest.mark.parametrize("name", ["vencode_tag", "efg_tag"])
def test_efg_tells_the_size_of_an_original(name: str, tag: str, side: int) -> None:
    assert parse(f"{PICTURE}?stp=dst-jpg_e35&{efg(**{name: tag})}").rank == WHOLE + side


@pytest.mark.parametrize("padding", ["==", "%3D%3D", ""])
def test_efg_may_lack_its_padding(padding: str) -> None:
    bare = "eyJ2ZW5jb2RlX3RhZyI6InhwaWRzLjIyNjh4NDAzMi5zZHIuQzMifQ"
    assert parse(f"{PICTURE}?efg={bare}{padding}").rank == WHOLE + 4032


def test_efg_may_use_either_base64_alphabet() -> None:
    tags = json.dumps({"?>": "~~~", "vencode_tag": "xpids.720x900"}).encode()
    standard, url_safe = base64.b64encode(tags).decode(), base64.urlsafe_b64encode(tags).decode()
    assert standard != url_safe
    assert parse(f"{PICTURE}?efg={standard}").rank == parse(f"{PICTURE}?efg={url_safe}").rank == WHOLE + 900


@given(st.sampled_from([150, 320, 640, 750, 1080]), st.integers(1080, 9999), st.integers(1080, 9999))
def test_an_original_larger_than_its_box_does_not_change_the_rank(box: int, width: int, height: int) -> None:
    url = f"{PICTURE}?stp=dst-jpg_e35_p{box}x{box}"
    assert parse(f"{url}&{efg(vencode_tag=f'xpids.{width}x{height}.sdr')}").rank == parse(url).rank == WHOLE + box


def test_a_box_enlarges_nothing() -> None:
    small = efg(vencode_tag="profile_pic.django.96.c1")
    assert parse(f"{PICTURE}?stp=dst-jpg_s150x150&{small}").rank == WHOLE + 96
    assert parse(f"{PICTURE}?stp=c0.80.640.640a_dst-jpg_e15").rank == 640
    assert parse(f"{PICTURE}?stp=c0.10.120.120a_dst-jpg_s640x640").rank == 120


@pytest.mark.parametrize("stp", ["c0.43_dst-jpg", "c0.5000x0.5000f_dst-jpg", "c-4.0.0.9a_dst-jpg"])
def test_a_crop_of_unknown_size_is_still_a_crop(stp: str) -> None:
    assert parse(f"{PICTURE}?stp={stp}").rank == UNKNOWN_SIDE


@pytest.mark.parametrize("stp", ["dst-jpg_e35_tt6", "cp0_dst-jpg", "cmp1_dst-webp", "s0x0", "s640", "", "____"])
def test_steps_that_tell_no_size_leave_a_whole_original(stp: str) -> None:
    assert parse(f"{PICTURE}?stp={stp}").rank == WHOLE + UNKNOWN_SIDE


def test_the_steps_of_an_old_path_count_like_stp() -> None:
    old = "https://scontent.cdninstagram.com/v/t51.2885-15/{}/123_456_789_n.jpg?tp=7"
    assert parse(old.format("e35/p1080x1080")).rank == WHOLE + 1080
    assert parse(old.format("sh0.08/e35/c0.74.752.752a/s640x640")).rank == 640
    assert parse(old.format("s640x640/sh0.08/e35/c0.135.1080.1080")).rank == 640


@given(
    st.sampled_from(["efg", "stp", "ig_cache_key", "oe"]), st.text() | st.binary().map(lambda raw: encoded(str(raw)))
)
def test_an_unreadable_parameter_only_leaves_its_meaning_unknown(name: str, value: str) -> None:
    source = parse(f"{PICTURE}?{name}={quote(value, safe='', errors='replace')}")
    assert source.identity.startswith(("file:", "pk:"))
    assert source.rank > 0


@pytest.mark.parametrize(
    "tags", ["[" * 5000, "[1]", "null", '{"vencode_tag": 7}', '{"vencode_tag": null}', "9" * 5000, "{", "\ud800"]
)
def test_hostile_json_in_efg_is_unknown(tags: str) -> None:
    value = quote(base64.b64encode(tags.encode("utf-8", "surrogatepass")).decode(), safe="")
    assert parse(f"{PICTURE}?efg={value}").rank == WHOLE + UNKNOWN_SIDE


# Expiry


@given(st.integers(0x10000000, 253402128000))
def test_oe_is_hexadecimal_unix_time(seconds: int) -> None:
    expected = datetime.fromtimestamp(seconds, UTC)
    assert parse(f"{PICTURE}?oe={seconds:X}").expires_at == expected
    assert parse(f"{PICTURE}?oe={seconds:x}").expires_at == expected


@pytest.mark.parametrize(
    "oe",
    [
        "",
        "-65ED71AB",
        "utf-8",
        "0x65ED71AB",
        "65ED_71AB",
        "65ED71AG",
        "٦٥ED٧١AB",
        "5",
        "3AFFF44180",
        "F" * 16,
        "F" * 99,
    ],
)
def test_an_oe_that_is_no_time_is_unknown(oe: str) -> None:
    assert parse(f"{PICTURE}?oe={oe}").expires_at is None


def test_a_vp_path_carries_its_expiry() -> None:
    path = "/vp/0123456789abcdef0123456789abcdef/5E85B000/t51.2885-19/s150x150/123_456_789_a.jpg"
    source = parse("https://scontent.cdninstagram.com" + path + "?_nc_ht=scontent.cdninstagram.com")
    assert source.expires_at == datetime(2020, 4, 2, 9, 27, 28, tzinfo=UTC)
    assert (source.identity, source.rank) == ("file:123_456_789_a", WHOLE + 150)
    assert parse(f"https://example.com{path}".replace("5E85B000", "F" * 16)).expires_at is None


def test_of_a_repeated_parameter_the_first_value_that_is_not_empty_counts() -> None:
    source = parse(f"{PICTURE}?oe=&stp&oe=65ED71AB&oe=FFFFFFFF&stp=dst-jpg_s150x150&stp=dst-jpg_s640x640")
    assert source.expires_at == datetime(2024, 3, 10, 8, 39, 7, tzinfo=UTC)
    assert source.rank == WHOLE + 150


# Escapes and refusals


@given(
    signed_urls,
    st.sampled_from(["&", "&amp;", "&amp;amp;", "&#38;", "&amp;#x26;", r"\u0026", r"\\u0026", r"\u0026amp;"]),
    st.sampled_from(["/", r"\/", r"\\/"]),
    st.sampled_from(["", " ", "\t\r\n", '"', "'", r"\"", ' "']),
)
def test_escapes_are_undone(url: str, ampersand: str, slash: str, wrapping: str) -> None:
    escaped = wrapping + url.replace("&", ampersand).replace("/", slash) + wrapping[::-1]
    assert unescape(escaped) == url
    assert parse(escaped) == parse(url)


@given(
    st.one_of(
        signed_urls, st.text().map(lambda text: "https://host/" + text), st.from_regex(r"https?://[\w.:@\\/&;-]*")
    )
)
def test_reading_a_url_again_changes_nothing(raw: str) -> None:
    try:
        source = parse(raw)
    except ValueError:
        return
    assert parse(source.url) == source


def test_nothing_the_signature_covers_is_touched() -> None:
    url = "HTTPS://ScontentX.CDNinstagram.com:443/v/t51.2885-15/123_456_789_n.jpg?b=%3d%3D+%20&a&&oh=00_Ab%2f#x"
    assert parse(url).url == url


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "null",
        "scontent.cdninstagram.com/v/t51.2885-15/1_n.jpg",
        "//scontent.cdninstagram.com/v/t51.2885-15/1_n.jpg",
        "ftp://example.com/1.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "https://",
        "https:///1.jpg",
        "https://:443/1.jpg",
        "https://user:secret@example.com/1.jpg",
        "https://user@example.com/1.jpg",
        r"https://example.com\@127.0.0.1/1.jpg",
        "https://example.com/1 2.jpg",
        "https://example.com/1\n.jpg",
        "https://example.com/1\x00.jpg",
        "https://example.com/1\u200b.jpg",
        "https://example.com/\ud800.jpg",
        r"https://example.com/\ud800.jpg",
        "https://[::1/1.jpg",
        "https://example.com:port/1.jpg",
        "https://example.com:99999/1.jpg",
        "https://example.com:0/1.jpg",
        "https://example.com/" + "a" * MAX_URL_LENGTH,
    ],
)
def test_nonsense_is_refused(raw: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse(raw)
    assert type(refusal.value) is ValueError


@given(st.one_of(st.text(), st.text().map(lambda text: "https://" + text), st.text(r"htps:/\u0026&amp;@[]?=%.")))
def test_any_text_is_read_or_refused(raw: str) -> None:
    try:
        source = parse(raw)
    except ValueError:
        return
    assert source.identity
    assert source.rank > 0


# Media ids


@pytest.mark.parametrize("media_id", ["avatar", "1234567890123456789", "123_456", "a-b", "x" * 100])
def test_a_plain_media_id_is_its_own_key(media_id: str) -> None:
    assert media_key(media_id) == media_id


@given(st.text())
def test_a_media_key_is_always_safe_in_a_path(media_id: str) -> None:
    key = media_key(media_id)
    assert 1 <= len(key) <= 100
    assert set(key) <= set(string.ascii_letters + string.digits + "-_")
    assert media_key(key) == key


@pytest.mark.parametrize("media_id", ["", "../../etc", "a b", "a\n", "é", "٣", "\ud800", "x" * 101])
def test_any_other_media_id_becomes_a_hash(media_id: str) -> None:
    digest = hashlib.sha256(media_id.encode("utf-8", "surrogatepass")).hexdigest()
    assert media_key(media_id) == "x-" + digest[:32]
