"""The site's reference names everything that is public."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import torchimplicit as ti

API = Path(__file__).parent.parent.parent / "docs" / "api"


def test_every_public_name_is_on_a_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in API.glob("*.md"))
    named = set(re.findall(r"^\.\. auto(?:function|class|exception|module):: (?:torchimplicit\.)?(\w+)$", text, re.M))
    assert set(ti.__all__) <= named


def test_every_public_module_is_shown_with_all_that_it_exports() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in API.glob("*.md"))
    for name in ti.__all__:
        if isinstance(getattr(ti, name), ModuleType):
            assert f".. automodule:: torchimplicit.{name}\n   :members:\n   :imported-members:\n" in text
