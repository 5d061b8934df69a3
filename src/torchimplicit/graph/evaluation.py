"""The values of the user's function, node by node, in a graph: without checkpoints, and without errors of torch.linalg."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from torchimplicit.private.operators import LOOK_AT_FACTORS, DispatchMode


def evaluate(module: GraphModule, nodes: Iterable[Node], values: dict[Node, Any]) -> None:
    """Add the values of those nodes that have none yet."""
    interpreter = _Evaluation(module, garbage_collect_values=False)
    interpreter.env = values
    with _Unchecked():
        for node in nodes:
            if node not in values:
                values[node] = interpreter.run_node(node)


class _Evaluation(Interpreter):
    """A checkpoint saves nothing, for a solve keeps z* alone, and torch.func does not take its hooks: what is within it is evaluated.

    ``torch.linalg.cholesky`` raises where there are no factors, which a loop cannot: there they are not a number.
    """

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if getattr(target, "__name__", "") == "tag_activation_checkpoint":
            part, *given = args
            return _Evaluation(part, garbage_collect_values=False).run(*given)
        if target is torch.linalg.cholesky:
            factor, failed = torch.linalg.cholesky_ex(*args, **kwargs)
            return factor.masked_fill(failed.gt(0)[..., None, None], torch.nan)
        return super().call_function(target, args, kwargs)


class _Unchecked(DispatchMode):
    """Nor does torch.linalg look at the factors of LU and LDL: they have a zero on the diagonal where a matrix is singular, and what is
    solved with them is not finite without this."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func is LOOK_AT_FACTORS else func(*args, **(kwargs or {}))
