"""All pages together."""

from fastapi import APIRouter

from cdn_pipeline.api.pages import actions, failures, overview, runbook, sign_in, static_files, stories

router = APIRouter(include_in_schema=False)
for _part in (overview, stories, failures, actions, runbook, sign_in, static_files):
    router.include_router(_part.router)
