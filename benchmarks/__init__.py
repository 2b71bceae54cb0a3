"""Measurements, run by hand: each prints ratios or sizes of one run on one machine, and docs say which command."""
