"""The user's problem as a check sees it, with the tensors that it is differentiated in within reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit import condition
from torchimplicit.capture.capture import capture
from torchimplicit.capture.randomness import frozen
from torchimplicit.diagnostics.verdict import KindName
from torchimplicit.layout import Layout, per_system_scalar, per_system_vector, same_as_z
from torchimplicit.private import pytree
from torchimplicit.problems.fixed_point import FixedPoint, fixed_point
from torchimplicit.problems.least_squares import LeastSquares, least_squares
from torchimplicit.problems.minimize import Minimum, minimize
from torchimplicit.problems.root import Root, root
from torchimplicit.solution import Solution


@dataclass(frozen=True)
class Form:
    """A kind of problem: how it is solved, which condition defines its solution, and how its function's output is flattened."""

    solve: Callable[..., Solution]
    kind: condition.Kind
    flatten: Callable[[Layout, str], Callable[[Any], Tensor]]


FORMS: dict[KindName, Form] = {
    "root": Form(root, Root(), same_as_z),
    "fixed_point": Form(fixed_point, FixedPoint(), same_as_z),
    "minimize": Form(minimize, Minimum(), per_system_scalar),
    "least_squares": Form(least_squares, LeastSquares(), per_system_vector),
}


class CheckedProblem:
    """The user's problem with its tensors in reach: own copies of args, and the captured leaves themselves."""

    def __init__(
        self,
        f: Callable[..., Any],
        z0: Any,
        args: tuple[Any, ...],
        kind: KindName,
        keywords: dict[str, Any],
        layout: Layout,
    ) -> None:
        f = frozen(f, keywords.get("randomness", "error"), layout.device)  # for one solve and the next
        self.f, self.z0, self.kind, self.keywords, self.layout = f, z0, kind, keywords, layout
        self.args = pytree.tree_map(_own, args)
        given = [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Tensor) and leaf.requires_grad]
        captured, *_ = capture(f, layout.flatten(z0), layout.argument, self.args, flat_real)
        seen = {id(leaf) for leaf in pytree.tree_leaves(self.args)}
        self.leaves = given + [t for t in captured.tensors if t.requires_grad and t.is_leaf and id(t) not in seen]

    def solve(self, start: Any, **keywords: Any) -> Any:
        return FORMS[self.kind].solve(self.f, start, self.args, **{**self.keywords, "on_failure": "ignore", **keywords})

    def gradient(self, z: Any, cotangent: Tensor) -> list[Tensor]:
        """Of <cotangent, z>, in all leaves."""
        return gradient_of((self.layout.flatten(z) * cotangent).sum(), self.leaves)

    def condition(self, flat: Tensor) -> Tensor:
        """g at a flat z, (B, n) -> (B, n)."""
        form = FORMS[self.kind]
        output = form.flatten(self.layout, f"{form.kind.name}: the function")
        return form.kind.residual(lambda flat: output(self.f(self.layout.argument(flat), *self.args)), flat)


def random_like_z(count: int, generator: torch.Generator, layout: Layout) -> Tensor:
    return torch.randn(count, generator=generator, dtype=layout.real_dtype).to(layout.device)


def gradient_of(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    if not leaves or not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found)]


def flat_real(tree: Any) -> Tensor:
    """All numbers of a pytree of tensors, complex ones as pairs."""
    leaves = pytree.tree_leaves(tree)
    return torch.cat([(torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).flatten() for t in leaves])


def _own(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
        return leaf.detach().clone().requires_grad_()
    return leaf
