"""Measurements behind the claims of the documentation; run each with `python -m benchmarks.NAME`."""
