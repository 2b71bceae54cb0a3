"""A whole run in a process of its own, configured by the environment: `python -m cdn_pipeline_tests.engine.child`."""

from cdn_pipeline.settings import load_settings
from cdn_pipeline_tests.engine.runs import run

if __name__ == "__main__":
    run(load_settings())
