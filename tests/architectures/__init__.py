"""Architectures that people use, as their packages build them or as their papers print them."""

from tests.architectures import models, packaged, sequences
from tests.architectures.architecture import ARCHITECTURES

__all__ = ["ARCHITECTURES", "models", "packaged", "sequences"]
