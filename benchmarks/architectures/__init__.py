"""Which layers of known architectures may merge: `python -m benchmarks.architectures`."""
