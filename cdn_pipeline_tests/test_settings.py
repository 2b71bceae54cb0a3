from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from cdn_pipeline.settings import ConfigurationError, Settings, load_settings, project_root

SECRET = "hunter2"  # wherever a secret may stand

R2 = {
    "CF_ACCOUNT_ID": "account",
    "R2_BUCKET_NAME": "public",
    "R2_ORIGINALS_BUCKET_NAME": "private",
    "R2_ACCESS_KEY_ID": "key",
    "R2_SECRET_ACCESS_KEY": SECRET,
    "CDN_BASE_URL": "https://cdn.example",
    "SOURCE_DATABASE_URL": "postgresql://db.example/application",
    "CATALOG_DATABASE_URL": "postgresql://db.example/catalog",
}
S3 = {
    "OBJECT_STORE_URL": "s3://public",
    "ORIGINALS_STORE_URL": "s3://private",
    "R2_ACCESS_KEY_ID": "key",
    "R2_SECRET_ACCESS_KEY": SECRET,
    "R2_ENDPOINT_URL": "http://127.0.0.1:9000",
    "CDN_BASE_URL": "https://cdn.example",
}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours, and no `.env`."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    def load(**environment: str) -> Settings:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return load_settings()

    return load


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def test_nothing_need_be_set_on_a_laptop(load: Any) -> None:
    settings = load()
    var = project_root() / "var"
    assert (settings.embedded_catalog, settings.embedded_source) == (True, True)
    assert settings.objects_url == (var / "objects").as_uri()
    assert settings.originals_url == (var / "originals").as_uri()
    assert settings.public_base_url == "http://127.0.0.1:8000"
    assert settings.s3_endpoint_url is None
    assert settings.download_allowed_networks == ()


def test_empty_variables_count_as_unset(load: Any) -> None:
    assert load(OBJECT_STORE_URL="", CATALOG_DATABASE_URL="", R2_BUCKET_NAME="").embedded_catalog


@pytest.mark.parametrize("blank", [" ", "\n", "\t \n"])
@pytest.mark.parametrize(
    "name", ["ADMIN_API_TOKEN", "ALERT_URLS", "CF_API_TOKEN", "DECODO_AUTH_TOKEN", "R2_SECRET_ACCESS_KEY"]
)
def test_a_blank_secret_counts_as_unset(load: Any, name: str, blank: str) -> None:
    assert getattr(load(**{name: blank}), name.lower()) is None


def test_r2_is_configured_by_account_and_buckets(load: Any) -> None:
    settings = load(**R2)
    assert (settings.objects_url, settings.originals_url) == ("s3://public", "s3://private")
    assert settings.s3_endpoint_url == "https://account.r2.cloudflarestorage.com"
    assert settings.public_base_url == "https://cdn.example"


def test_s3_urls_use_the_same_keys_and_endpoint(load: Any) -> None:
    settings = load(**S3)
    assert (settings.objects_url, settings.s3_endpoint_url) == ("s3://public", "http://127.0.0.1:9000")


def test_the_same_store_in_both_notations_is_no_contradiction(load: Any) -> None:
    assert load(**R2, OBJECT_STORE_URL="s3://public").objects_url == "s3://public"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        (without(R2, "R2_ACCESS_KEY_ID"), "R2_ACCESS_KEY_ID is missing"),
        (without(R2, "R2_SECRET_ACCESS_KEY"), "R2_SECRET_ACCESS_KEY is missing"),
        (without(R2, "CF_ACCOUNT_ID"), r"R2_ENDPOINT_URL \(or CF_ACCOUNT_ID\) is missing"),
        (without(R2, "R2_BUCKET_NAME"), r"OBJECT_STORE_URL \(or R2_BUCKET_NAME\) is missing"),
        (without(R2, "R2_ORIGINALS_BUCKET_NAME"), r"ORIGINALS_STORE_URL \(or R2_ORIGINALS_BUCKET_NAME\) is missing"),
        (without(R2, "R2_BUCKET_NAME", "R2_ORIGINALS_BUCKET_NAME"), r"R2_BUCKET_NAME .* is missing"),
        (without(R2, "CDN_BASE_URL"), r"CDN_BASE_URL \(or R2_PUBLIC_BASE\) is missing"),
        (without(R2, "SOURCE_DATABASE_URL"), "SOURCE_DATABASE_URL is missing"),
        (without(R2, "CATALOG_DATABASE_URL"), "CATALOG_DATABASE_URL is missing"),
        (without(S3, "R2_ENDPOINT_URL"), "R2_ENDPOINT_URL"),
        (without(S3, "ORIGINALS_STORE_URL"), "ORIGINALS_STORE_URL"),
        (without(S3, "OBJECT_STORE_URL"), "OBJECT_STORE_URL"),
        (S3 | {"ORIGINALS_STORE_URL": "s3://public"}, "ORIGINALS_STORE_URL must not be OBJECT_STORE_URL"),
        (S3 | {"ORIGINALS_STORE_URL": "s3://public/"}, "must not be"),
        (S3 | {"ORIGINALS_STORE_URL": "s3://public/private"}, "must not be"),
        (R2 | {"R2_ORIGINALS_BUCKET_NAME": "public"}, "must not be"),
        ({"OBJECT_STORE_URL": "file:///a", "ORIGINALS_STORE_URL": "file:///a/"}, "must not be"),
        ({"OBJECT_STORE_URL": "file:///a", "ORIGINALS_STORE_URL": "file:///b/../a/originals"}, "must not be"),
        ({"OBJECT_STORE_URL": "file:///a/public", "ORIGINALS_STORE_URL": "file:///a"}, "must not be"),
        (R2 | {"OBJECT_STORE_URL": "file:///a"}, "name different stores"),
        (R2 | {"ORIGINALS_STORE_URL": "s3://third"}, "name different stores"),
        ({"OBJECT_STORE_URL": "gs://bucket"}, "OBJECT_STORE_URL must start with"),
        ({"ORIGINALS_STORE_URL": "/folder"}, "ORIGINALS_STORE_URL must start with"),
        ({"CDN_BASE_URL": "cdn.example"}, "CDN_BASE_URL must start with"),
        (
            {"CDN_BASE_URL": "https://a.example", "R2_PUBLIC_BASE": "https://b.example/th"},
            r"R2_PUBLIC_BASE must be .* https://a\.example/th",
        ),
        ({"DOWNLOAD_ALLOWED_NETWORKS": "10.0.0.0/8, nonsense"}, "DOWNLOAD_ALLOWED_NETWORKS: 'nonsense'"),
        ({"DECODO_API_URL": "https://decodo.example"}, "DECODO_AUTH_TOKEN is missing beside DECODO_API_URL"),
        (
            {"DECODO_API_URL": "http://decodo.example", "DECODO_AUTH_TOKEN": SECRET},
            "DECODO_API_URL must start with https://",
        ),
        (
            {"DECODO_API_URL": f"https://user:{SECRET}@decodo.example", "DECODO_AUTH_TOKEN": SECRET},
            "DECODO_API_URL must not hold credentials",
        ),
    ],
)
def test_half_a_deployment_is_refused_and_named_without_telling_secrets(
    load: Any, environment: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        load(**environment)
    assert ".env.example" in str(caught.value)
    assert SECRET not in str(caught.value) + repr(caught.value.__cause__)


def test_everything_that_is_missing_is_named_at_once(load: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(R2_BUCKET_NAME="public")
    for name in (
        "R2_ACCESS_KEY_ID",
        "R2_SECRET_ACCESS_KEY",
        "CF_ACCOUNT_ID",
        "R2_ORIGINALS_BUCKET_NAME",
        "CDN_BASE_URL",
    ):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "base"),
    [
        ({"CDN_BASE_URL": "https://cdn.example/"}, "https://cdn.example"),
        ({"R2_PUBLIC_BASE": "https://cdn.example/th/"}, "https://cdn.example"),
        ({"CDN_BASE_URL": "https://cdn.example", "R2_PUBLIC_BASE": "https://cdn.example/th"}, "https://cdn.example"),
        ({"CDN_BASE_URL": "https://cdn.example/", "R2_PUBLIC_BASE": "https://cdn.example/th/"}, "https://cdn.example"),
    ],
)
def test_the_public_base_may_be_told_either_way(load: Any, environment: dict[str, str], base: str) -> None:
    assert load(**environment).public_base_url == base


def test_networks_are_a_list_and_need_not_be_exact(load: Any) -> None:
    networks = load(DOWNLOAD_ALLOWED_NETWORKS=" 127.0.0.1/8, fd00::/8,").download_allowed_networks
    assert networks == (ip_network("127.0.0.0/8"), ip_network("fd00::/8"))


def test_a_var_directory_moves_both_stores(load: Any, tmp_path: Path) -> None:
    settings = load(CDN_PIPELINE_VAR_DIR=str(tmp_path))
    assert settings.objects_url == (tmp_path / "objects").as_uri()
    assert settings.originals_url == (tmp_path / "originals").as_uri()


def test_env_file_serves_where_the_environment_is_silent(load: Any, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CDN_BASE_URL=https://file.example\nR2_PUBLIC_BASE=\nOTHER=ignored\n")
    assert load().public_base_url == "https://file.example"
    assert load(CDN_BASE_URL="https://environment.example").public_base_url == "https://environment.example"


def test_env_file_is_looked_for_beside_the_project_wherever_a_program_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert Settings.model_config["env_file"] == project_root() / ".env"
    assert (project_root() / "pyproject.toml").exists()


def test_settings_cannot_be_changed(load: Any) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().cdn_base_url = "https://other.example"


def test_secrets_are_never_shown(load: Any) -> None:
    database = f"postgresql://user:{SECRET}@host/db"
    settings = load(**R2 | {"SOURCE_DATABASE_URL": database, "CATALOG_DATABASE_URL": database})
    assert settings.r2_secret_access_key.get_secret_value() == SECRET
    assert SECRET not in f"{settings} {settings!r} {list(settings.__repr_args__())}"


def test_an_s3_server_on_this_machine_needs_no_public_address(load: Any) -> None:
    assert load(**without(S3, "CDN_BASE_URL")).public_base_url == "http://127.0.0.1:8000"


def test_the_example_file_sets_nothing_so_that_it_hides_no_variable_of_the_environment() -> None:
    assert dotenv_values(project_root() / ".env.example") == {}


def test_downloads_reach_the_demos_origin_only_beside_the_demos_database(load: Any) -> None:
    assert load().allowed_networks == (ip_network("127.0.0.0/8"),)
    assert load(SOURCE_DATABASE_URL="postgresql://db.example/application").allowed_networks == ()
    assert load(DOWNLOAD_ALLOWED_NETWORKS="10.1.0.0/16").allowed_networks == (ip_network("10.1.0.0/16"),)


def test_an_env_file_in_another_encoding_is_named(load: Any, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"CDN_BASE_URL=https://\xff.example\n")
    with pytest.raises(ConfigurationError, match=r"\.env is not UTF-8"):
        load()


def test_a_token_is_all_that_the_provider_of_fresh_urls_needs(load: Any) -> None:
    assert not load().has_provider
    assert load(DECODO_AUTH_TOKEN=SECRET).has_provider
    assert SECRET not in repr(load(DECODO_AUTH_TOKEN=SECRET))


def test_half_of_what_purging_needs_is_refused_by_name_and_the_token_is_never_shown(load: Any) -> None:
    with pytest.raises(ConfigurationError, match="CF_ZONE_ID is missing beside CF_API_TOKEN") as caught:
        load(CF_API_TOKEN=SECRET)
    assert SECRET not in str(caught.value)
    settings = load(CF_ZONE_ID="zone")
    assert SECRET not in repr(settings)


def test_the_token_is_sent_to_nobody_without_tls(load: Any) -> None:
    with pytest.raises(ConfigurationError, match="CF_API_URL must start with https://"):
        load(CF_API_URL="http://api.example")
    assert load(CF_API_URL="http://127.0.0.1:9000").cf_api_url == "http://127.0.0.1:9000"
