"""Two weeks of the pipeline in minutes: the demo's world under a clock that runs fast.

`happenings` change the world, `daemon` starts the runs that Dagster's would, `timeline` moves the clocks, `doomed_run`
is killed in the middle of its work, `history` counts what came of it from an independent record, `fortnight` plays it
all and `fortnight_result` judges. Here belongs what simulates; the world itself is `cdn_pipeline.demo`.
"""
