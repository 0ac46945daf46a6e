"""Find the smaller network inside a network in training: watch, merge, check, train on."""

__version__ = "0.1.0"
