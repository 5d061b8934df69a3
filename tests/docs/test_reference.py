"""The site's reference shows everything that is public."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import torchimplicit as ti

API = Path(__file__).parent.parent.parent / "docs" / "api"
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in API.glob("*.md"))


def test_what_the_page_of_problems_leaves_out_is_on_another_page() -> None:
    (left_out,) = re.findall(r":exclude-members: (.*)", TEXT)
    shown = re.findall(r"^\.\. auto(?:class|exception):: (\w+)$", TEXT, re.M)
    assert set(left_out.split(", ")) <= set(shown)


def test_every_public_module_is_shown_with_all_that_it_exports() -> None:
    for name in ti.__all__:
        if isinstance(getattr(ti, name), ModuleType):
            assert f".. automodule:: torchimplicit.{name}\n   :members:\n   :imported-members:\n" in TEXT, (
                f"docs/api needs a page for torchimplicit.{name}, like docs/api/nn.md, and its line in docs/api/index.md"
            )
