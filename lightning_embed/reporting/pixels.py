"""A matrix as a picture that stands in a page by itself."""

from __future__ import annotations

import base64
import struct
import zlib
from itertools import pairwise

import torch
from torch import Tensor

# from dark blue over grey to yellow, growing lighter all the way, so that it can be read in grey
ANCHORS = ((0.0, (0, 32, 76)), (0.5, (124, 123, 120)), (1.0, (255, 233, 69)))


def palette(share: float) -> tuple[int, int, int]:
    """The colour of a value between 0 and 1.

    >>> palette(0.0), palette(1.0)
    ((0, 32, 76), (255, 233, 69))
    """
    for (low, first), (high, second) in pairwise(ANCHORS):
        if share <= high:
            at = (share - low) / (high - low)
            red, green, blue = (round(a + at * (b - a)) for a, b in zip(first, second, strict=True))
            return red, green, blue
    return ANCHORS[-1][1]


def picture(hundredths: Tensor) -> str:
    """A matrix of values in hundredths between -100 and 100, int8, as a PNG of one pixel an entry, in a data URI.

    >>> picture(torch.zeros(2, 2, dtype=torch.int8))[:22]
    'data:image/png;base64,'
    """
    rows, columns = hundredths.shape
    pixels = hundredths.short().clamp(-100, 100).add(100).to(torch.uint8).cpu().numpy()
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    colors = bytes(part for value in range(201) for part in palette(value / 200))
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)  # eight bits a pixel, of a palette
    chunks = ((b"IHDR", header), (b"PLTE", colors), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def css_gradient() -> str:
    """The palette as a CSS gradient, for its legend."""
    stops = ", ".join(f"rgb{color} {100 * share:.0f}%" for share, color in ANCHORS)
    return f"linear-gradient(90deg, {stops})"
