"""HTTP for frontends, operators and monitors (docs/api.md), and renditions of a local store.

Here belong routes, their documents and what all requests have in common. They read stores and catalog, never Dagster's
process; whatever changes something is one call of `queue` or `upkeep`.
"""
