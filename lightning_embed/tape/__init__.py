"""Recorded calls of a model that can be replayed on the model as it is later, without the code that made them."""

from lightning_embed.tape.batches import record
from lightning_embed.tape.plain import decode, encode, from_plain, to_plain
from lightning_embed.tape.recorder import Recorder
from lightning_embed.tape.tape import Autocast, Named, Ref, Step, Tape, deal, replay

__all__ = [
    "Autocast",
    "Named",
    "Recorder",
    "Ref",
    "Step",
    "Tape",
    "deal",
    "decode",
    "encode",
    "from_plain",
    "record",
    "replay",
    "to_plain",
]
