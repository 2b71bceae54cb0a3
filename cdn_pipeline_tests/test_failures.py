import pickle

import pytest

from cdn_pipeline.failures import Blame, FailureKind, ImageFailure, Remedy


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_says_what_to_do_and_where_to_look(kind: FailureKind) -> None:
    assert kind.remedy in Remedy
    assert kind.blame in Blame
    assert kind.advice.endswith(".")
    assert kind.value == kind.name.lower()
    assert len(kind.value) <= 40  # the catalog's column


@pytest.mark.parametrize(
    ("remedy", "kinds"),
    [
        (
            Remedy.FRESH_URL,
            {
                "source_url_404",
                "source_url_expired",
                "signature_mismatch",
                "source_forbidden",
                "too_many_redirects",
                "not_an_image",
                "blocked_address",  # it heals when the setting or the row is put right
            },
        ),
        (
            Remedy.PERMANENT,
            {
                "source_gone",
                "unsupported_format",
                "image_corrupt",
                "image_too_large",
                "transcode_timeout",
                "out_of_memory",
            },
        ),
    ],
)
def test_the_remedies(remedy: Remedy, kinds: set[str]) -> None:
    assert {kind.value for kind in FailureKind if kind.remedy is remedy} == kinds


def test_a_kind_is_found_by_its_name_unless_only_another_version_knows_it() -> None:
    assert all(FailureKind.of(kind.value) is kind for kind in FailureKind)
    assert FailureKind.of("retired_kind") is None


def test_infrastructure_never_ends_an_image_for_good() -> None:
    for kind in FailureKind:
        if kind.blame is Blame.INFRASTRUCTURE:
            assert kind.remedy is Remedy.TRANSIENT


def test_a_failure_reads_as_kind_and_detail() -> None:
    assert str(ImageFailure(FailureKind.IMAGE_CORRUPT, "bad header")) == "image_corrupt: bad header"
    assert str(ImageFailure(FailureKind.IMAGE_CORRUPT)) == "image_corrupt"


def test_a_failure_survives_the_way_between_processes() -> None:
    failure = ImageFailure(FailureKind.RATE_LIMITED, "HTTP 429", retry_after_seconds=7.5)
    copy = pickle.loads(pickle.dumps(failure))
    assert (copy.kind, copy.detail, copy.retry_after_seconds) == (failure.kind, failure.detail, 7.5)
