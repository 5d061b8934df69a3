"""The operator that stands for a solve while torch.compile reads the code around it.

Dynamo reads the user's function alone, as the operator's subgraph, with every tensor that it uses as an operand. When the graph is
lowered, the operator runs the solve itself, in plain Python, on tensors without values: what that computes takes its place, its loops
as ``while_loop``, its derivative as that of the :class:`~torchimplicit.adjoints.function.ImplicitFunction`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from torchimplicit.graph.explicit import Call
from torchimplicit.graph.private import BaseHOP, after_autograd


class _SolveOperator(BaseHOP):
    def __init__(self) -> None:
        super().__init__("torchimplicit_solve")

    def __call__(self, subgraph: Any, *operands: Any, **spec: Any) -> Any:
        from torchimplicit.graph.region import solve, solve_plainly

        if not isinstance(subgraph, GraphModule):  # Dynamo could not read it, and has left this call to plain code
            return solve_plainly(subgraph, operands, spec)
        return after_autograd(lambda *operands: solve(Call(subgraph, operands, spec["unknowns"]), spec), operands)


solve_operator = _SolveOperator()


class _BlackBoxOperator(BaseHOP):
    """A solver of somebody else's: either Dynamo can read the whole of it, or it is left to plain code as a whole."""

    def __init__(self) -> None:
        super().__init__("torchimplicit_black_box")

    def __call__(self, solver: Callable[..., Any], *operands: Any) -> Any:
        return solver(*operands) if isinstance(solver, GraphModule) else torch.compiler.disable(solver)(*operands)


black_box_operator = _BlackBoxOperator()
