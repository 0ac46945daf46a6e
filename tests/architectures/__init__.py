"""Architectures that people use, as their packages build them or as their papers print them."""
