"""`python -m cdn_pipeline.cli` is `cdn-pipeline`."""

from cdn_pipeline.cli import main

main()
