"""Mirrors images whose URLs expire to immutable URLs on a CDN.

Start reading at `cdn_pipeline.definitions`; docs/architecture.md has the flow and the layers.
"""
