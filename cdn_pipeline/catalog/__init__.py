"""Tables, migrations, sessions, and the embedded Postgres that they live in by default. No policy.

What a row means and when it changes state is decided in `cdn_pipeline.queue` and above.
"""
