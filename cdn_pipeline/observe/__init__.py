"""What is measured and what is judged: thresholds, verdicts on numbers, samples for the eye.

Reads; writes nothing but the statistics of an hour, the probes of what is published, the state of alerts, and the
doctor's throw-away objects.
"""
