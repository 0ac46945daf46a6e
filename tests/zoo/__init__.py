"""Small models that many tests run through, by name: `ZOO[name].make()`."""

from tests.zoo import convolutions, regions, wiring
from tests.zoo.case import IN, OUT, ROWS, WIDTH, ZOO, Case

__all__ = ["IN", "OUT", "ROWS", "WIDTH", "ZOO", "Case", "convolutions", "regions", "wiring"]
