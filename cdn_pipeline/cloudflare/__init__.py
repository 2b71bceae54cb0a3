"""Cloudflare's API: what the CDN in front of the bucket is asked for.

Here belong requests to Cloudflare and the shapes of its answers. Not here: what is to be purged, and when (`upkeep`).
"""
