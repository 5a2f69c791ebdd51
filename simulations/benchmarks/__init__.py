"""Benchmarks: every speed that we claim, both sides in one process, as a ratio."""
