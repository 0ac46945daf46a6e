"""Small models that many tests run through, by name: `ZOO[name].make()`."""

from tests.zoo import regions, wiring
from tests.zoo.case import IN, OUT, ROWS, WIDTH, ZOO, Case

__all__ = ["IN", "OUT", "ROWS", "WIDTH", "ZOO", "Case", "regions", "wiring"]
