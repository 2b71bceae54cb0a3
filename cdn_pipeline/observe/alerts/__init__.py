"""Alerts: who is told of what is wrong, once, and when it is over.

`signals` say what is wrong (pure, over `facts`), `rules` for how long and what to do, `machine` when that fires,
resolves and is to be told (pure), `book` keeps it in the catalog, `messages` and `receivers` tell it, `rounds` does one
after the other, and `watch` does it every ten seconds. Thresholds are in `observe.thresholds`; what to do about an
alert is in docs/runbook.md.
"""
