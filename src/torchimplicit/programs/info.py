"""What a solve of a constrained program tells besides the facts of every solve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.private import functorch, pytree
from torchimplicit.solution import Record, SolveInfo
from torchimplicit.status import unanswered

FEW = 8  # numbers that are shown each


class Dual(NamedTuple):
    """One number, or flag, for each constraint: for a program (*batch, m), (*batch, k) and (*batch, n); else like what the constraints'
    functions return, and like z, with () where there are none.

    As multipliers, of the Lagrangian φ(z) + inequality · h(z) + equality · c(z) + bounds · z for h ≤ 0 and c = 0 (of a program Gz − h
    and Az − b): ``inequality`` is ≥ 0, and 0 where the inequality is slack; ``bounds`` is ≥ 0 where the upper bound holds z, ≤ 0 where
    the lower bound does, and 0 between. Where the constraints become h ≤ ε and c = ε, the least φ changes by −inequality · ε and
    −equality · ε.
    """

    inequality: Any
    equality: Any
    bounds: Any

    def __repr__(self) -> str:
        """One line, however many systems there are: of each kind of constraint that there is the numbers, if they are few, or their
        shapes with the largest number, or how many flags are set."""
        there = {
            name: part for name, part in self._asdict().items() if any(t.numel() for t in pytree.tree_leaves(part))
        }
        parts = [f"{name}={_in_short(part)}" for name, part in there.items()]
        return f"Dual({', '.join(parts)})"


def _in_short(part: Any) -> str:
    leaves = pytree.tree_leaves(part)
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
    if any(functorch.wrapped(leaf) for leaf in leaves):
        return f"<{shapes} inside a transform>"
    numbers = torch.cat([leaf.detach().flatten() for leaf in leaves])
    if len(numbers) <= FEW and len(leaves) == 1:
        return str([float(f"{x:.5g}") for x in numbers.tolist()] if numbers.is_floating_point() else numbers.tolist())
    if not numbers.is_floating_point():
        return f"<{shapes}: {int(numbers.sum())} set>"
    return f"<{shapes}: largest {float(numbers.abs().amax()):.3g}>"


class Certificate(NamedTuple):
    """Proofs that there is no solution; NaN in systems that need none.

    z : where the status is DUAL_INFEASIBLE, a direction (*batch, n) along which the objective falls for ever: Qz = 0, Gz ≤ 0, Az = 0,
        no bound is in the way, and pᵀz = −1.
    inequality, equality, lower, upper : where it is PRIMAL_INFEASIBLE, multipliers λ, ν, l and u (λ, l, u ≥ 0) whose combination of the
        constraints is 0ᵀz ≤ −1: Gᵀλ + Aᵀν + u − l = 0 and hᵀλ + bᵀν + upperᵀu − lowerᵀl = −1. Without bounds, l and u are 0.
    """

    z: Tensor
    inequality: Tensor
    equality: Tensor
    lower: Tensor
    upper: Tensor


class ConeCertificate(NamedTuple):
    """The same of cone programs.

    z : where the status is DUAL_INFEASIBLE, a direction (*batch, n) with Pz = 0, −Az ∈ K and qᵀz = −1.
    dual : where it is PRIMAL_INFEASIBLE, y (*batch, m) in the dual cone K* with Aᵀy = 0 and bᵀy = −1.
    """

    z: Tensor
    dual: Tensor


@dataclass(repr=False)
class ProgramInfo(SolveInfo):
    """The facts of the solve of a constrained program.

    dual : the multipliers, differentiable like z; of a cone program y (*batch, m).
    active : which constraints hold z, with a multiplier that is not 0; of a cone program the rows (*batch, m) of such cones. In the
        backward, where some touch z without one, or depend on each other, the system is reported as DEGENERATE: the derivative is
        one of several one-sided ones.
    certificate : where there is no solution, what proves it.
    """

    dual: Any = None
    active: Any = None
    certificate: Certificate | ConeCertificate | None = None


_CHILDREN = tuple(field.name for field in fields(ProgramInfo) if field.name not in ("record", "aux"))


def _flatten(info: ProgramInfo) -> tuple[list[Any], Record]:
    return [getattr(info, name) for name in _CHILDREN], info.record


def _unflatten(children: Iterable[Any], record: Record) -> ProgramInfo:
    return ProgramInfo(**dict(zip(_CHILDREN, children, strict=True)), record=record)


pytree.register_pytree_node(ProgramInfo, _flatten, _unflatten, serialized_type_name="torchimplicit.ProgramInfo")


def shown(status: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """Parts of the solutions, (*batch, ·), as the user sees them: NaN where there is none. It is added, which leaves it to the backward
    to say what it thinks of a gradient that is asked of it."""
    nothing = torch.where(unanswered(status), torch.nan, 0.0).unsqueeze(-1)
    return tuple(part + nothing.to(part.dtype) for part in parts)
