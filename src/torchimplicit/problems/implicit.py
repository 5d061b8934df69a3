"""Black-box solvers made differentiable: only the condition that their result meets is differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor

from torchimplicit.adjoints import Adjoint, Implicit, Unrolled
from torchimplicit.autograd.transforms import inside_transform, outside_transforms, tracing
from torchimplicit.capture.autocast import Autocast
from torchimplicit.capture.capture import Arguments
from torchimplicit.capture.mode import being_captured, paused
from torchimplicit.compiling.entries import solves
from torchimplicit.compiling.entry import answer, entry_point
from torchimplicit.compiling.traced_problem import TracedProblem
from torchimplicit.condition import Vmap
from torchimplicit.graph.explicit import Explicit
from torchimplicit.layout import Layout, describe, same_as_z
from torchimplicit.linear import LU
from torchimplicit.linear.solver import Left
from torchimplicit.loop.search import Inside, Search
from torchimplicit.loop.settings import LoopSettings
from torchimplicit.loop.solve import SearchResult
from torchimplicit.private import functorch, pytree
from torchimplicit.problem import Problem, detached
from torchimplicit.problems.answer import judged, tolerance_of_answers
from torchimplicit.problems.pose import check_adjoint
from torchimplicit.problems.root import Root
from torchimplicit.prose import GIVEN
from torchimplicit.solution import Record, Solution
from torchimplicit.solvers.equations import Equations
from torchimplicit.status import OnFailure, check_policy
from torchimplicit.tolerance import Tolerance


@dataclass(frozen=True)
class BlackBox(Search):
    """A solver that is asked for its answer, and nothing else; the condition tells whether to believe it."""

    solve: Callable[..., Any] | None
    args: Arguments
    layout: Layout
    vmap: str
    tolerance: Tolerance

    def __call__(self, equations: Equations, z0: Tensor, settings: LoopSettings, inside: Inside | None) -> SearchResult:
        z = z0 if inside is None else self._inside(inside)
        return judged(equations, z, self.layout.widths, self.tolerance)

    def _inside(self, inside: Inside) -> Tensor:
        if inside.vmaps and self.vmap == "raise":
            raise RuntimeError(
                'a black-box solver cannot be vmapped: it was called under torch.vmap. Pass vmap="sequential" to '
                "torchimplicit.implicit to call it once per sample, or write a solver that takes batches and use batch_ndim."
            )
        assert self.solve is not None
        rows = [
            self.layout.flatten(self.solve(*self.args.rebuilt(one))) for one in samples(inside.tensors, inside.vmaps)
        ]
        return torch.cat([row.to(self.layout.real_dtype) for row in rows])

    def from_tensors(self, tensors: Sequence[Tensor]) -> Left:
        return LU.from_tensors(tensors)


def samples(tensors: Sequence[Tensor], vmaps: Sequence[Vmap]) -> Iterator[list[Tensor]]:
    """The tensors of each sample of nested vmaps, outermost first."""
    if not vmaps:
        yield [t.detach() for t in tensors]
        return
    size, dims = vmaps[0]
    for k in range(size):
        yield from samples([t[k] if d is not None else t for t, d in zip(tensors, dims, strict=False)], vmaps[1:])


def implicit(
    condition: Callable[..., Any],
    *,
    vmap: Literal["raise", "sequential"] = "raise",
    batch_ndim: int = 0,
    adjoint: Adjoint | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    on_failure: OnFailure = "warn",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a black-box ``solve(*args) -> z`` returns a z that can be differentiated.

    The solver may be anything (SciPy, a simulator, a table): it is called without autograd on detached tensors, and is never
    differentiated. The derivative is that of ``condition(z, *args) = 0`` at what it returns, in args and in every tensor that
    the condition uses. Keyword arguments are the solver's own; the condition does not see them.

    Args:
        condition: condition(z, *args) -> like z; zero at the solution.
        vmap: what to do under ``torch.vmap``: "raise", or "sequential", one call for each sample.
        batch_ndim: the first so many dimensions of z index independent systems.
        adjoint: ``Implicit()`` by default.
        rtol, atol: the result z is a solution when no number of it is off by more than atol + rtol · rms(z) (of a pytree: of its
            leaf), as told by the Newton correction J⁻¹ condition(z), J = ∂condition/∂z, which has the unit of z whatever that of
            the condition. By default eps^(3/4) and 1e-4 (√eps where that is more), which is what SciPy's minimisers leave at
            their own defaults: give the tolerance that the solver itself works to.
        on_failure: "warn", "raise", "nan" or "ignore", for a result that is no solution, and for the backward. Where J is singular
            it cannot be told, which is a failure too.

    Raises:
        TypeError: the solver did not return a tensor or a pytree of tensors.

    Example::

        @ti.implicit(lambda z, a: z**3 + z - a)
        def cube(a):
            return torch.from_numpy(scipy.optimize.fsolve(lambda z: z**3 + z - a.numpy(), a.numpy()))
    """
    if vmap not in ("raise", "sequential"):
        raise ValueError(f'vmap must be "raise" or "sequential"; got {vmap!r}.')
    if not callable(condition):
        raise TypeError(f"condition must be a function of (z, *args); got {type(condition).__name__}.")
    if isinstance(adjoint, Unrolled):
        raise TypeError(
            "a black-box solver has no steps to unroll. Use Implicit() (the default), OneStep() or Phantom()."
        )
    check_adjoint(adjoint)
    check_policy(on_failure)

    options: dict[str, Any] = {
        "vmap": vmap,
        "batch_ndim": batch_ndim,
        "adjoint": adjoint,
        "rtol": rtol,
        "atol": atol,
        "on_failure": on_failure,
    }

    def decorate(solve: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(solve):
            raise TypeError(f"the solver must be a function of (*args); got {describe(solve)}.")

        @wraps(solve)
        def solved(*args: Any, **kwargs: Any) -> Any:
            @wraps(solve)
            def box(*args: Any) -> Any:
                return solve(*args, **kwargs)

            if tracing():  # what can be read of the solver is in the graph too
                with torch.no_grad():
                    start = answer(box, detached(args))
                return _implicit(condition, start, args, **options).value
            inside = inside_transform() or being_captured()
            with torch.no_grad(), paused(), outside_transforms():
                start = detached(box(*(_sample(args) if inside else detached(args))))
            return _implicit(condition, start, args, box=box, **options).value

        return solved

    return decorate


@solves("implicit", like_z=True)
@entry_point
def _implicit(
    condition: Callable[..., Any],
    z: Any,
    args: tuple[Any, ...] = (),
    *,
    box: Callable[..., Any] | None = None,
    vmap: str,
    batch_ndim: int,
    adjoint: Adjoint | None,
    rtol: float | None,
    atol: float | None,
    on_failure: OnFailure,
) -> Solution:
    """The answer z with its derivative. ``box`` : the solver, which is asked again inside transforms."""
    layout = Layout.of(z, batch_ndim, name=f"the result of {getattr(box, '__name__', 'the solver')}")
    tolerance = tolerance_of_answers(rtol, atol, layout.tolerance_dtype)
    problem = (TracedProblem if isinstance(condition, Explicit) else Problem)(
        kind=Answer(),
        fn=condition,
        args=args,
        layout=layout,
        flatten=lambda layout, _: same_as_z(layout, "condition"),
        search=BlackBox(box, Arguments.of(args), layout, vmap, tolerance),
        tolerance=tolerance,
        max_steps=0,
        on_failure=on_failure,
        has_aux=False,
        record=Record(Answer.name),
        autocast=Autocast.now(layout.device.type),
    )
    return (adjoint or Implicit()).run(problem, layout.flatten(z))


class Answer(Root):
    """A root that is given, not searched."""

    name = GIVEN


def _sample(args: tuple[Any, ...]) -> Any:
    """One sample of arguments inside transforms, as plain tensors: what the solver makes of it has z's structure."""

    def plain(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if not functorch.wrapped(leaf):
            return leaf.detach()
        inner = plain(functorch.inside(leaf))  # the wrapper of an outer vmap lies inside
        return inner.select(functorch.batch_dim(leaf), 0) if functorch.batched(leaf) else inner

    return pytree.tree_map(plain, args)
