"""What mkdocs does besides: formulas become MathML while the pages are built, so that no script is loaded for them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# what the extension arithmatex leaves of $…$ and $$…$$
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Turn every formula of a page into MathML, which browsers draw by themselves."""

    def drawn(found: re.Match[str]) -> str:
        return convert(html.unescape(found[3]), display="block" if found[2] == "[" else "inline")

    return _FORMULA.sub(drawn, content)
