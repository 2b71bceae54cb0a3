"""HTTP for readers: delivery of renditions from a local store. Reads stores and catalog, never Dagster's process."""
