"""What is measured and what is judged: thresholds, verdicts on numbers, samples for the eye.

Reads; writes nothing but the statistics of an hour, the probes of what is published, the state of alerts, and the
throw-away objects of the doctor and of `bench`, whose runs have a scratch catalog.
"""
