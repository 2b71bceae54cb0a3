"""What is measured and what is judged: thresholds, verdicts on numbers, samples for the eye. Reads; writes nothing
but the statistics of an hour."""
