"""The queue: every transition of image and job, the one due query, leases, retries, and what hosts may be asked.

Here and nowhere else a `status` column is written. All functions take an open connection and do one batch in one
statement or a few; the caller commits. No network, no files, no Dagster.
"""
