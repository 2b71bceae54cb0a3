"""Configuration from the environment (and `.env`): the contract's variables, checked before anything starts."""

from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Network = IPv4Network | IPv6Network

_LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"),)
_DEFAULT_CDN_BASE = "http://127.0.0.1:8000"


def _unless_blank(secret: SecretStr | None) -> SecretStr | None:
    return secret if secret and secret.get_secret_value().strip() else None


Secret = Annotated[SecretStr | None, AfterValidator(_unless_blank)]
"""A secret that may be missing. A blank one is missing: as a token, whoever sends none would have it."""


class ConfigurationError(Exception):
    """The environment is half-configured or contradicts itself; the message names what to set."""


def project_root() -> Path:
    """The checkout that this package is installed from, else the working directory."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


class Settings(BaseSettings):
    """Everything that the environment decides. Field names are the variables' names in lower case.

    All of them are optional on a laptop: the embedded Postgres and folders under `var/` serve then.
    """

    model_config = SettingsConfigDict(
        env_file=project_root() / ".env",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,  # it holds passwords
        str_strip_whitespace=True,  # a token from a file ends in a newline, and errors about headers show them whole
    )

    cdn_pipeline_var_dir: Path = Field(default_factory=lambda: project_root() / "var")
    source_database_url: str | None = Field(default=None, repr=False)  # holds a password, like the next
    catalog_database_url: str | None = Field(default=None, repr=False)
    object_store_url: str | None = None
    originals_store_url: str | None = None

    cf_account_id: str | None = None
    r2_bucket_name: str | None = None
    r2_originals_bucket_name: str | None = None
    r2_access_key_id: str | None = None
    r2_secret_access_key: Secret = None
    r2_endpoint_url: str | None = None

    cdn_base_url: str | None = None
    r2_public_base: str | None = None

    cf_api_token: Secret = None
    cf_zone_id: str | None = None
    cf_api_url: str = "https://api.cloudflare.com/client/v4"
    # A year is the contract's header. Less lets browsers forget what was erased, and the CDN keep the rest for a year.
    browser_cache_days: int = Field(default=365, ge=0, le=365)
    private_profiles: Literal["keep", "expire"] = "keep"  # what becomes of a profile that has turned private

    # The provider of fresh URLs, by default with the lowest plan in mind; the budget is per day (UTC) and all runs.
    decodo_api_url: str = "https://scraper-api.decodo.com"
    decodo_auth_token: Secret = None
    decodo_requests_per_day: int = Field(default=1000, ge=0)
    decodo_requests_per_second: float = Field(default=5.0, gt=0, le=100)

    superseded_kept_days: int = Field(default=30, ge=1)  # renditions that were replaced, for whoever has their URL

    download_allowed_networks: Annotated[tuple[Network, ...], NoDecode] = ()

    admin_api_token: Secret = None
    api_cors_origins: Annotated[tuple[str, ...], NoDecode] = ()  # whose pages may ask the API
    media_legacy_fallback: bool = False  # whether the API names the source URL of what is not published yet
    dagster_graphql_url: str | None = None  # starts runs for users' requests at once; else the sensor does

    # Where alerts go: apprise's URLs, separated by spaces. They hold tokens.
    alert_urls: Secret = None
    alert_level: Literal["info", "warning", "critical"] = "warning"  # and above
    monthly_budget_usd: float | None = Field(default=None, gt=0)

    @field_validator("download_allowed_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                return tuple(ip_network(part.strip(), strict=False) for part in value.split(",") if part.strip())
            except ValueError as error:
                raise ValueError(f"DOWNLOAD_ALLOWED_NETWORKS: {error}") from error
        return value

    @field_validator("api_cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _complete(self) -> "Settings":
        problems = [*self._missing(), *self._contradictions()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def embedded_catalog(self) -> bool:
        """Whether the catalog lives in the embedded Postgres."""
        return self.catalog_database_url is None

    @property
    def embedded_source(self) -> bool:
        """Whether the application database is the demo's, in the embedded Postgres."""
        return self.source_database_url is None

    @property
    def allowed_networks(self) -> tuple[Network, ...]:
        """The private networks that downloads may reach; with the demo's own database also the demo's own origin."""
        return self.download_allowed_networks or (_LOOPBACK if self.embedded_source else ())

    @property
    def has_provider(self) -> bool:
        """Whether somebody can be asked for fresh URLs."""
        return self.decodo_auth_token is not None

    @cached_property
    def objects_url(self) -> str:
        """Where renditions live: `file:///folder` or `s3://bucket`."""
        return self._store_url(self.object_store_url, self.r2_bucket_name, "objects")

    @cached_property
    def originals_url(self) -> str:
        """Where originals live: `file:///folder` or `s3://bucket`."""
        return self._store_url(self.originals_store_url, self.r2_originals_bucket_name, "originals")

    @property
    def public_base_url(self) -> str:
        """What a rendition's path is appended to, without a trailing slash."""
        if self.cdn_base_url:
            return self.cdn_base_url.rstrip("/")
        if self.r2_public_base:
            return self.r2_public_base.rstrip("/").removesuffix("/th")
        return _DEFAULT_CDN_BASE

    @property
    def s3_endpoint_url(self) -> str | None:
        """The S3 endpoint of R2, derived from the account where it is not given."""
        if self.r2_endpoint_url:
            return self.r2_endpoint_url
        return f"https://{self.cf_account_id}.r2.cloudflarestorage.com" if self.cf_account_id else None

    def _store_url(self, url: str | None, bucket: str | None, folder: str) -> str:
        if url:
            return url.rstrip("/")
        if bucket:
            return f"s3://{bucket}"
        return (self.cdn_pipeline_var_dir / folder).resolve().as_uri()

    def _missing(self) -> list[str]:
        problems: list[str] = []
        remote = [url for url in (self.objects_url, self.originals_url) if url.startswith("s3://")]
        if remote:
            needed: dict[str, object] = {
                "R2_ACCESS_KEY_ID": self.r2_access_key_id,
                "R2_SECRET_ACCESS_KEY": self.r2_secret_access_key,
                "R2_ENDPOINT_URL (or CF_ACCOUNT_ID)": self.s3_endpoint_url,
            }
            problems += [f"{name} is missing for {remote[0]}" for name, value in needed.items() if not value]
        if self.objects_url.startswith("s3://") and not (self.originals_store_url or self.r2_originals_bucket_name):
            problems.append(
                "ORIGINALS_STORE_URL (or R2_ORIGINALS_BUCKET_NAME) is missing beside the remote object store"
            )
        if self.originals_url.startswith("s3://") and not (self.object_store_url or self.r2_bucket_name):
            problems.append("OBJECT_STORE_URL (or R2_BUCKET_NAME) is missing beside the remote store of originals")
        elsewhere = self.objects_url.startswith("s3://") and not is_loopback(self.s3_endpoint_url)
        if elsewhere:
            needed = {
                "CDN_BASE_URL (or R2_PUBLIC_BASE)": self.cdn_base_url or self.r2_public_base,
                "SOURCE_DATABASE_URL": self.source_database_url,
                "CATALOG_DATABASE_URL": self.catalog_database_url,
            }
            problems += [
                f"{name} is missing beside the remote object store" for name, value in needed.items() if not value
            ]
        credentials = self.r2_access_key_id or self.r2_secret_access_key
        if credentials and not remote:
            problems.append("R2_BUCKET_NAME (or OBJECT_STORE_URL=s3://…) is missing beside the R2 credentials")
        if bool(self.cf_api_token) != bool(self.cf_zone_id):
            missing, given = ("CF_ZONE_ID", "CF_API_TOKEN") if self.cf_api_token else ("CF_API_TOKEN", "CF_ZONE_ID")
            problems.append(f"{missing} is missing beside {given}")
        if "decodo_api_url" in self.model_fields_set and not self.has_provider:
            problems.append("DECODO_AUTH_TOKEN is missing beside DECODO_API_URL")
        return problems

    def _contradictions(self) -> list[str]:
        problems: list[str] = []
        for name, url, bucket_name, bucket in (
            ("OBJECT_STORE_URL", self.objects_url, "R2_BUCKET_NAME", self.r2_bucket_name),
            ("ORIGINALS_STORE_URL", self.originals_url, "R2_ORIGINALS_BUCKET_NAME", self.r2_originals_bucket_name),
        ):
            if urlsplit(url).scheme not in ("file", "s3"):
                problems.append(f"{name} must start with file:// or s3://, not {url!r}")
            elif bucket and urlsplit(url).netloc != bucket:
                problems.append(f"{name} ({url}) and {bucket_name} ({bucket}) name different stores: set one of them")
        if _overlap(self.objects_url, self.originals_url):
            problems.append(
                "ORIGINALS_STORE_URL must not be OBJECT_STORE_URL: originals are private, renditions public"
            )
        if (
            self.cdn_base_url
            and self.r2_public_base
            and self.r2_public_base.rstrip("/") != f"{self.public_base_url}/th"
        ):
            problems.append(f"R2_PUBLIC_BASE must be CDN_BASE_URL + /th, that is {self.public_base_url}/th")
        if urlsplit(self.public_base_url).scheme not in ("http", "https"):
            problems.append(f"CDN_BASE_URL must start with https:// or http://, not {self.public_base_url!r}")
        if urlsplit(self.cf_api_url).scheme != "https" and not is_loopback(self.cf_api_url):
            problems.append("CF_API_URL must start with https://: it is sent our token")
        provider = urlsplit(self.decodo_api_url)
        if provider.scheme != "https" and not (provider.scheme == "http" and is_loopback(self.decodo_api_url)):
            problems.append("DECODO_API_URL must start with https://: it is sent our credentials")
        if "@" in provider.netloc:
            problems.append("DECODO_API_URL must not hold credentials: they go into DECODO_AUTH_TOKEN")
        return problems


def is_loopback(url: str | None) -> bool:
    """Whether a server is on this machine, as simulators of S3 are."""
    return (urlsplit(url or "").hostname or "") in ("localhost", "127.0.0.1", "::1")


def _overlap(one: str, other: str) -> bool:
    """Whether two stores are in the same bucket, or one's folder is the other's or inside it."""
    first, second = urlsplit(one), urlsplit(other)
    if first.scheme != second.scheme:
        return False
    if first.scheme == "s3":
        return first.netloc == second.netloc
    folders = [Path(unquote(url.path)).resolve() for url in (first, second)]
    return folders[0].is_relative_to(folders[1]) or folders[1].is_relative_to(folders[0])


def load_settings() -> Settings:
    """Reads the environment and `.env`.

    Raises:
        ConfigurationError: something is missing or contradicts something else; the message says what to set.
    """
    try:
        return Settings()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f".env is not UTF-8 text: {error}") from error
    except ValidationError as error:
        reasons = "; ".join(str(issue["msg"]).removeprefix("Value error, ") for issue in error.errors())
        raise ConfigurationError(f"configuration: {reasons} (see .env.example)") from error
