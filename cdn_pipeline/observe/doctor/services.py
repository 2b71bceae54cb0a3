"""Others that are asked or told something: Cloudflare, the provider of fresh URLs, receivers of alerts, admins."""

import asyncio
import base64
import binascii

from cdn_pipeline.cloudflare.analytics import Analytics, AnalyticsError
from cdn_pipeline.cloudflare.purge import CachePurge, PurgeFailedError
from cdn_pipeline.cloudflare.tokens import TokenUnknownError, token_status
from cdn_pipeline.observe.alerts.receivers import Receivers
from cdn_pipeline.observe.doctor.delivery import ABSENT
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, failed, ok, skipped, warning
from cdn_pipeline.settings import ConfigurationError
from cdn_pipeline.sources.decodo import Decodo
from cdn_pipeline.sources.provider import NoProfile, ProviderRefusedError

_NO_CLOUDFLARE = "not configured: CF_API_TOKEN and CF_ZONE_ID"
_ANOTHER_ONE = "Make one with the permissions Cache Purge, Analytics: Read and Account Analytics: Read: CF_API_TOKEN."

_KNOWN_PROFILE = "instagram"  # the platform's own, which will not go away
_ADMIN_TOKEN_LENGTH = 32


def look_at_cloudflare(deployment: Deployment) -> Finding:
    """Whether the token is one of Cloudflare's, and active."""
    settings = deployment.settings
    if settings.cf_api_token is None:
        return skipped(_NO_CLOUDFLARE)
    try:
        status = token_status(settings.cf_api_token, account_id=settings.cf_account_id, api_url=settings.cf_api_url)
    except TokenUnknownError as error:
        return failed(str(error), _ANOTHER_ONE)
    return ok("the token is active") if status == "active" else failed(f"the token is {status}", _ANOTHER_ONE)


def look_at_purge(deployment: Deployment) -> Finding:
    """Whether the zone's cache may be purged: of a URL that nobody has put there."""
    settings = deployment.settings
    if settings.cf_api_token is None or settings.cf_zone_id is None:
        return skipped(f"{_NO_CLOUDFLARE}; erasures end “purge pending”")
    purge = CachePurge(settings.cf_zone_id, settings.cf_api_token, api_url=settings.cf_api_url)
    try:
        asyncio.run(_purge(purge, f"{settings.public_base_url}/{ABSENT}"))
    except PurgeFailedError as error:
        return failed(str(error), "Set CF_ZONE_ID to the zone of CDN_BASE_URL; give the token Cache Purge for it.")
    return ok("the token may purge the zone's cache")


async def _purge(purge: CachePurge, url: str) -> None:
    async with purge:
        await purge.purge_files([url])


def look_at_figures(deployment: Deployment) -> Finding:
    """Whether Cloudflare tells figures of the zone."""
    settings = deployment.settings
    if not (settings.cf_api_token and settings.cf_zone_id and settings.cf_account_id):
        return skipped("not configured: CF_API_TOKEN, CF_ZONE_ID and CF_ACCOUNT_ID; hit ratio and reads stay unknown")
    try:
        with Analytics(settings.cf_api_token, api_url=settings.cf_api_url) as analytics:
            analytics.limits(settings.cf_zone_id)
    except AnalyticsError as error:
        return warning(str(error), "Give the token Analytics: Read of the zone and Account Analytics: Read.")
    return ok("the token may read the zone's figures")


def look_at_provider(deployment: Deployment) -> Finding:
    """Whether the credentials look like such, and, if that may cost something, whether they are taken."""
    token = deployment.settings.decodo_auth_token
    if token is None:
        return skipped("not configured: DECODO_AUTH_TOKEN; expired URLs wait until their source rows change")
    if not _names_user_and_password(token.get_secret_value()):
        words = "DECODO_AUTH_TOKEN is neither user:password nor their Base64"
        return failed(words, "Copy the Basic authentication token from Decodo's dashboard, whole.")
    if not deployment.ask_provider:
        return ok("the credentials look right; `--ask` puts one question, which is paid for")
    return _asked(deployment)


def _names_user_and_password(token: str) -> bool:
    if ":" in token:
        return True
    try:
        return b":" in base64.b64decode(token.removeprefix("Basic "), validate=True)
    except binascii.Error:
        return False


def _asked(deployment: Deployment) -> Finding:
    client = Decodo.from_settings(deployment.settings)
    assert client is not None, "there is a token"
    try:
        with client:
            [answer] = client.fetch([_KNOWN_PROFILE])
    except ProviderRefusedError as error:
        return failed(str(error), "Correct DECODO_AUTH_TOKEN, or look at the subscription in Decodo's dashboard.")
    if isinstance(answer, NoProfile):
        words = f"{_KNOWN_PROFILE}: {answer.refusal} {answer.detail}".rstrip()
        return warning(words, "The credentials are taken, but no profile came: ask again later.")
    return ok(f"{_KNOWN_PROFILE} came with {len(answer.images)} pictures")


def look_at_alerts(deployment: Deployment) -> Finding:
    """Whether every URL names a receiver."""
    urls = deployment.settings.alert_urls
    if urls is None:
        return skipped("not configured: ALERT_URLS; nobody is told of anything")
    try:
        count = len(Receivers(urls).ids)
    except ConfigurationError as error:
        return failed(
            str(error), "Write it as https://github.com/caronc/apprise/wiki says; separate several by spaces."
        )
    return ok(f"receivers: {count}; `cdn-pipeline alerts --test` sends them a message")


def look_at_admin_token(deployment: Deployment) -> Finding:
    """Whether the token cannot be guessed."""
    token = deployment.settings.admin_api_token
    if token is None:
        return skipped("not configured: ADMIN_API_TOKEN; the admin routes answer 503")
    length = len(token.get_secret_value())
    if length < _ADMIN_TOKEN_LENGTH:
        words = f"ADMIN_API_TOKEN has {length} characters, which can be guessed"
        return warning(words, f"Take at least {_ADMIN_TOKEN_LENGTH} at random:", "openssl rand -hex 32")
    return ok(f"ADMIN_API_TOKEN has {length} characters")
