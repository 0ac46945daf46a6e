"""How well merging keeps the function, on MNIST, beside its peers in the same run."""
