"""What is said of a status has a text for every status, for kinds of problems that exist, and a line on the page of what is exact."""

from __future__ import annotations

import re
from pathlib import Path

from torchimplicit import Status
from torchimplicit.adjoints.systems import Derivative
from torchimplicit.problems.cone_family import ConeOptimum
from torchimplicit.problems.fixed_point import FixedPoint
from torchimplicit.problems.implicit import Answer
from torchimplicit.problems.least_squares import LeastSquares
from torchimplicit.problems.linear_solve import Linear
from torchimplicit.problems.minimize import Minimum
from torchimplicit.problems.quadratic_program import Optimum
from torchimplicit.prose import OTHERS, ROOT

PAGE = Path(__file__).parent.parent / "docs" / "concepts" / "exact.md"


def test_every_status_has_a_text_and_every_text_a_status_of_a_kind_that_exists() -> None:
    assert set(ROOT) == set(Status.__members__)
    kinds = (Derivative, FixedPoint, Answer, ConeOptimum, LeastSquares, Linear, Minimum, Optimum)
    assert set(OTHERS) == {kind.name for kind in kinds}
    for texts in OTHERS.values():
        assert set(texts) <= set(ROOT)


def test_the_page_has_a_line_for_every_status_that_is_returned() -> None:
    lines = re.findall(r"^\| `Status\.(\w+)` \| .+ \| .+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines == [name for name in Status.__members__ if name != "RUNNING"]
