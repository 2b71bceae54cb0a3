"""A small world to run the pipeline in: an application database, and an origin that behaves as Instagram's CDN does.

Here belongs what the demo, the benchmarks and the tests need in place of the outside world, on loopback only:
photographs, signed URLs that expire, an HTTP server that misbehaves on purpose, tables and rows of an application.
Here does not belong anything that production code imports, nor any part of the pipeline itself.

`photographs` makes pictures, `pictures` gives them Instagram's names and sizes, `signing` their URLs. `faults` decides
which request goes wrong, `answers` has the words for it, `origin` serves. `rows` draws profiles and posts,
`app_database` keeps them. `fast_clock` moves a catalog's clock. `serving` has applications answer on loopback.
"""
