"""The schema's history: one module per change under `versions/`, applied in order by `cdn_pipeline.catalog.migrate`."""
