"""Everything Dagster: assets in the order of the flow, partitions, checks, jobs, resources.

Thin on purpose: an asset reads its partition and configuration, calls the engine and reports what it says. No SQL and
no image work here, and nothing below this package knows Dagster.
"""
