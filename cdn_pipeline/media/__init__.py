"""Bytes to bytes: decoding, transcoding, recipes. Pure functions: no SQL, no network, no Dagster.

Pool workers import this package and nothing heavier, so it stays that way (import-linter keeps it).
"""
