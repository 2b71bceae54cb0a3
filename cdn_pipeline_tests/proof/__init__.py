"""The proof: a Hypothesis state machine on a real Postgres that looks for a sequence of events after which the catalog
is not what docs/architecture.md promises.

`test_machine` has the events, `audit` what must hold after each of them, `source` the model of rows, URLs and pictures,
`parts` what workers work with. The code under test is the real one, from discovery's comparison to settled outcomes;
only the network and the worker processes are stood in for.
"""
