"""For the API reference: sections of a docstring are told apart although no empty line stands between them.

Griffe, which reads docstrings for mkdocstrings, takes `Raises:` for text unless the line before it is empty. mkdocs.yml names this file
as an extension of it.

    pytest tests/docs/test_docs_site.py
"""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<!\n)\n(?=(?:Args|Attributes|Returns|Yields|Raises):\n)")


class Sections(griffe.Extension):
    """Puts an empty line before each section."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
