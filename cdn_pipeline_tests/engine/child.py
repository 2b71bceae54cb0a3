"""A whole run in a process of its own, configured by the environment: `python -m cdn_pipeline_tests.engine.child`."""

from cdn_pipeline.engine import stream
from cdn_pipeline.settings import load_settings
from cdn_pipeline_tests.engine.runs import run

if __name__ == "__main__":
    stream.SETTLE_EVERY_SECONDS = (
        0.1  # its whole work takes about a second, in which it is to be killed between outcomes
    )
    run(load_settings())
