"""The operator that stands for a solve while torch.compile reads the code around it.

Dynamo reads the user's function alone, as the operator's subgraph, with every tensor that it uses as an operand. When the graph is
lowered, the operator runs the solve itself, in plain Python, on tensors without values: what that computes takes its place, its loops
as ``while_loop``, its derivative as that of the :class:`~torchimplicit.adjoints.function.ImplicitFunction`.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from torchimplicit.graph.explicit import Call
from torchimplicit.graph.private import BaseHOP


class _SolveOperator(BaseHOP):
    def __init__(self) -> None:
        super().__init__("torchimplicit_solve")

    def __call__(self, subgraph: Any, *operands: Any, **spec: Any) -> Any:
        from torchimplicit.graph.region import solve, solve_plainly

        if not isinstance(subgraph, GraphModule):  # Dynamo could not read it, and has left this call to plain code
            return solve_plainly(subgraph, operands, spec)
        return solve(Call(subgraph, operands, spec["unknowns"]), spec)


solve_operator = _SolveOperator()
