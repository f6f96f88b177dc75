"""Measurements, run by `make bench`; every figure is a ratio of two things in one run, or a limit that is kept."""
