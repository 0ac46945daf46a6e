"""Small networks whose sites are known, by name: `SITES[name].make()`."""

from tests.zoo.sites import attention, concatenations, convolutions, gates, sets, transposed, traps
from tests.zoo.sites.case import SITES, SiteCase, Truth, index, per_neuron_of

__all__ = [
    "SITES",
    "SiteCase",
    "Truth",
    "attention",
    "concatenations",
    "convolutions",
    "gates",
    "index",
    "per_neuron_of",
    "sets",
    "transposed",
    "traps",
]
