"""Disasters in a small world of real parts, and what must hold after each of them.

`front` stands before origin and store and misbehaves as `faults` say; `place` is Postgres, store and origin; `world` is
the catalog, source and buckets of one disaster, and its runs, each a process of its own; `disasters` strike and `audit`
judges, by counting independently of the pipeline. Here belongs what breaks things from outside: nothing is patched
inside a run.
"""
