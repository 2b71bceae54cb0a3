"""The HTTP application that `cdn-pipeline serve` runs."""

from fastapi import FastAPI

from cdn_pipeline.api.delivery import rendition_files
from cdn_pipeline.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """Delivery of renditions under `/th` (folder stores only), and `/livez`."""
    app = FastAPI(title="cdn_pipeline", description="Immutable URLs for images whose own URLs expire.")

    @app.get("/livez", summary="Whether the process answers")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    files = rendition_files(settings)
    if files is not None:
        app.mount("/th", files, name="renditions")
    return app
