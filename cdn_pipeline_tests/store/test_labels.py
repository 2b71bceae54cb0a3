from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.store.labels import Label, RenditionLabel
from cdn_pipeline.store.objects import attributes_of

LABEL = Label("instagram", "owner", "post_carousel", "post", "medium", "a" * 64)

words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
numbers = st.integers(0, 10**6)
times = st.datetimes(timezones=st.just(UTC))
labels = st.builds(
    Label, words, words, words, words, words, words, *(st.none() | each for each in (words, numbers, times, times))
)
placeholders = st.text("LEHV6nWB2yk8pyo0adR*.7kCMdnj#$%+,-:;=?@[]^_{|}~", min_size=6, max_size=60)
rendition_labels = st.builds(
    RenditionLabel,
    labels,
    words,
    numbers,
    words,
    *(st.none() | each for each in (words, numbers, numbers, words, placeholders)),
)


@given(label=labels)
def test_a_label_comes_back_from_its_metadata(label: Label) -> None:
    assert Label.read(label.metadata()) == label


@given(label=rendition_labels)
def test_the_label_of_a_rendition_does_and_says_all_that_its_image_does(label: RenditionLabel) -> None:
    assert RenditionLabel.read(label.metadata()) == label
    assert Label.read(label.metadata()) == label.image


def test_the_longest_label_fits_into_headers() -> None:
    longest = replace(
        LABEL,
        owner_id="o" * 100,
        source_id="s" * 100,
        media_id="m" * 100,
        identity="i" * 200,
        rank=10**6,
        observed_at=datetime(2026, 1, 1, microsecond=1, tzinfo=UTC),
        taken_at=datetime(2026, 1, 1, microsecond=1, tzinfo=UTC),
    )
    label = RenditionLabel(longest, "r" * 40, 1000, "512", "a" * 64, 512, 512, "e" * 100, "p" * 60)
    attributes_of("image/webp", "public, max-age=31536000, immutable", label.metadata())


def test_what_a_label_does_not_know_is_not_written() -> None:
    unknown = {field.name for field in fields(Label) if getattr(LABEL, field.name) is None}
    assert unknown == {"identity", "rank", "observed_at", "taken_at"}
    assert len(LABEL.metadata()) == len(fields(Label)) - len(unknown)


@pytest.mark.parametrize(
    "damage", [{"owner": None}, {"recipe": "webp"}, {"rank": "best"}, {"observed": "2026-01-01"}, {"taken": "now"}]
)
def test_metadata_that_is_no_label_is_refused(damage: dict[str, str | None]) -> None:
    metadata = {**RenditionLabel(LABEL, "webp", 1, "256").metadata(), **damage}
    with pytest.raises(ValueError):
        RenditionLabel.read({name: value for name, value in metadata.items() if value is not None})


@pytest.mark.parametrize("damage", ["", "LEHV6", "L" * 61, "LEHV6 nWB2yk", "LEHV6n\x00", "LEHV6nö"])
def test_what_cannot_be_a_placeholder_is_none(damage: str) -> None:
    metadata = {**RenditionLabel(LABEL, "webp", 1, "256").metadata(), "placeholder": damage}
    assert RenditionLabel.read(metadata).placeholder is None
