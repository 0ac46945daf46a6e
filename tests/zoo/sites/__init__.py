"""Small networks whose sites are known, by name: `SITES[name].make()`."""

from tests.zoo.sites import attention, concatenations, convolutions, gates, sets, transposed, traps
from tests.zoo.sites.case import IN, OUT, SITES, Net, SiteCase, Truth, batch_of, build, index, per_neuron_of

__all__ = [
    "IN",
    "OUT",
    "SITES",
    "Net",
    "SiteCase",
    "Truth",
    "attention",
    "batch_of",
    "build",
    "concatenations",
    "convolutions",
    "gates",
    "index",
    "per_neuron_of",
    "sets",
    "transposed",
    "traps",
]
