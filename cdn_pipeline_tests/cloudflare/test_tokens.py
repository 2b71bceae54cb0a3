"""Whether Cloudflare knows a token, against a stand-in for its API on this machine."""

import pytest
from aiohttp import web
from pydantic import SecretStr

from cdn_pipeline.cloudflare.tokens import TokenUnknownError, token_status
from cdn_pipeline.demo.serving import in_thread, listening

SECRET = SecretStr("token-hunter2")


def asked(*answers: web.Response, account_id: str | None = None) -> tuple[str, list[str]]:
    """The status, and the paths that were asked for; the answers are given one after the other."""
    left, paths = list(answers), []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path)
        return left.pop(0)

    application = web.Application()
    application.add_routes([web.get("/{path:.*}", answer)])
    with in_thread(listening(application)) as url:
        return token_status(SECRET, account_id=account_id, api_url=f"{url}/"), paths


def known(status: str) -> web.Response:
    return web.json_response({"success": True, "errors": [], "result": {"id": "1", "status": status}})


def unknown() -> web.Response:
    errors = [{"code": 1000, "message": "Invalid API Token"}]
    return web.json_response({"success": False, "errors": errors, "result": None}, status=401)


@pytest.mark.parametrize("status", ["active", "disabled", "expired"])
def test_a_users_token_is_told_as_cloudflare_tells_it(status: str) -> None:
    assert asked(known(status), account_id="1") == (status, ["/user/tokens/verify"])


def test_a_token_that_no_user_has_may_be_the_accounts() -> None:
    paths = ["/user/tokens/verify", "/accounts/1/tokens/verify"]
    assert asked(unknown(), known("active"), account_id="1") == ("active", paths)


def test_a_token_that_nobody_has_is_refused_in_cloudflares_own_words() -> None:
    with pytest.raises(TokenUnknownError, match=r"401: Invalid API Token \(1000\)"):
        asked(unknown())


def test_an_answer_that_is_none_of_cloudflares_is_no_yes() -> None:
    with pytest.raises(TokenUnknownError, match="200: without a reason"):
        asked(web.Response(text="<html>a login page of the hotel</html>"))


def test_an_api_that_is_away_is_told_without_the_token() -> None:
    with pytest.raises(TokenUnknownError, match="cannot be reached") as error:
        token_status(SECRET, api_url="http://127.0.0.1:9")
    assert "hunter2" not in f"{error.value} {error.value.__cause__!r}"
