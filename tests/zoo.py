"""Small models that many tests run through, by name: `ZOO[name].make()`."""

from tests import zoo_regions, zoo_wiring
from tests.zoo_case import IN, OUT, ROWS, WIDTH, ZOO, Case

__all__ = ["IN", "OUT", "ROWS", "WIDTH", "ZOO", "Case", "zoo_regions", "zoo_wiring"]
