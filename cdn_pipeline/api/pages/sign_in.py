"""Signing in with the admin token, and out."""

from fastapi import APIRouter, HTTPException, Response

from cdn_pipeline.api.pages import sessions
from cdn_pipeline.api.pages.sessions import Message
from cdn_pipeline.api.pages.visits import OperatorsForm, PageRoute, Visited, local_path, read_form

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/sign-in")
def get_sign_in(visit: Visited, next: str = "/") -> Response:  # noqa: A002  # the name of the parameter
    """The form; `next` is where it leads afterwards."""
    return visit.page("sign_in.html", next=local_path(next), name="")


@router.post("/sign-in")
async def post_sign_in(visit: Visited) -> Response:
    """Begins a session for whoever knows the token."""
    settings = visit.serving.settings
    if not visit.can_sign_in:
        raise HTTPException(503, "Nobody can sign in: set ADMIN_API_TOKEN and start the API again.")
    form = await read_form(visit.request)
    name, back = form.get("name", "").strip(), local_path(form.get("next", "/"))
    problem = _problem(visit, name, form.get("token", ""))
    if problem:
        return visit.page("sign_in.html", 401, next=back, name=name, message=Message(problem, is_bad=True))
    response = visit.go(back, Message(f"Signed in as {name}. What you do is written down under this name."))
    sessions.sign_in(visit.request, response, settings, name)
    return response


def _problem(visit: Visited, name: str, token: str) -> str | None:
    if not sessions.is_name(name):
        return "Say who you are, in at most 100 plain letters: the audit wants it."
    if not sessions.is_token(visit.serving.settings, token):
        return "This is not the token: it is the value of ADMIN_API_TOKEN."
    return None


@router.post("/sign-out")
def post_sign_out(visit: Visited, form: OperatorsForm) -> Response:
    """Ends the session."""
    response = visit.go("/", Message("Signed out."))
    sessions.sign_out(response)
    return response
