"""Trainings through the public API of packages that people use: `python -m tests.packages [NAME…]`."""
