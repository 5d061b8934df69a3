"""What a linear solver is given and makes is typed: mypy sees a wrong one of somebody's own."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest

from torchimplicit.adjoints import linearised_solver, posed
from torchimplicit.linear import direct, iteration, solver


@pytest.mark.parametrize("module", [direct, solver, iteration, linearised_solver, posed])
def test_the_protocols_know_no_any(module: Any) -> None:
    names = {node.id for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Name)}
    assert "Tensor" in names
    assert "Any" not in names
