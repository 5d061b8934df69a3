"""The heart: implicit differentiation as one ``torch.autograd.Function``.

For z*(x) with g(z*, x) = 0 the implicit function theorem gives

    reverse   dℓ/dx = −uᵀ ∂g/∂x   with  (∂g/∂z)ᵀ u = (dℓ/dz*)ᵀ
    forward   dz* = w              with  (∂g/∂z) w = −(∂g/∂x) dx

∂g/∂z is not formed here: what the forward solve has left of it comes along as ``Posed.inverse`` (``Newton.inverse``, say, and then
``from_tensors``), and is made good by true products.

Both linear systems are root problems themselves, in u or w. Where a derivative of the derivative may be asked for, the same Function
solves them: z* is its saved output and u comes from it, so every order is exact, recursively, with no further code. In a backward that
ends there, in plain code, the system is solved directly. The calls of such a backward, in their order:

    ImplicitFunction.backward, over_batched, _pullback    here; saved_tensors reads what was saved, and its versions
    ConditionSystem.linear                                           systems.py: (∂g/∂z)ᵀ u = v as a JacobianSystem
    JacobianSystem.vjp, _solved                                      systems.py
    solve_by_values                                                  by_values.py, in plain code; in_graph.py while a graph is made
    LinearisedSolver.solve                                           linearised_solver.py: by what
    Bound.iterate                                                    linear/iteration.py, richardson.py: the solver's steps
    Jacobian.rmatvec, Linearisation.pull                             linear/jacobian.py, autograd/products.py: one product each
    singular_systems, _beside_a_gauge                                judged.py, by_values.py: where A is singular, and that does no harm
    look, diagnosed                                                  judged.py, at_solution.py: whether z* is near enough
    _undecided                                                       by_values.py: derivatives to one side only
    JacobianSystem._reported                                         systems.py: failures, as on_failure says
    Sweep.gradients                                                  sweep.py: −uᵀ ∂g/∂x, if the solve has not made it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchimplicit.adjoints.failed import replace_failed, replace_what_failed
from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import inside_functorch, values_hidden, without_dead_wrappers
from torchimplicit.capture.autocast import full_precision
from torchimplicit.condition import Condition
from torchimplicit.private import left_alone
from torchimplicit.private.autograd import apply, changed_in_place, forward_mode_on, over_batched
from torchimplicit.solution import SolveStats
from torchimplicit.status import all_converged

STATS = len(SolveStats._fields)


class Solved(NamedTuple):
    """A solution z*, the facts, and the tensors of an approximate inverse of ∂g/∂z there, if any: the outputs of the Function."""

    z: Tensor
    stats: SolveStats
    inverse: tuple[Tensor, ...]

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """As the Function returns them."""
        return (self.z, *self.stats, *self.inverse)

    @staticmethod
    def of(flat: Sequence[Tensor]) -> Solved:
        """From what the Function has returned."""
        return Solved(flat[0], SolveStats(*flat[1 : 1 + STATS]), tuple(flat[1 + STATS :]))


class Saved(NamedTuple):
    """A solution z*, how its search ended, the tensors of an approximate inverse there, and those of the condition: what is saved."""

    z: Tensor
    status: Tensor
    inverse: tuple[Tensor, ...]
    tensors: tuple[Tensor, ...]

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """In a row."""
        return (self.z, self.status, *self.inverse, *self.tensors)

    @staticmethod
    def of(flat: Sequence[Tensor], inverses: int) -> Saved:
        """From a row in which so many tensors make up the inverse."""
        z, status, *rest = flat
        return Saved(z, status, tuple(rest[:inverses]), tuple(rest[inverses:]))


class System(Protocol):
    """A condition and a way to solve it.

    own_operator : whether the operator of :meth:`linear` is the Jacobian of this very condition in its unknowns.
    linearised : the condition linearised at the solution, in the unknowns and in all tensors, where it was kept.
    """

    own_operator: ClassVar[bool]

    @property
    def linearised(self) -> Linearisation | None: ...

    @property
    def condition(self) -> Condition:
        """What vanishes at the solution, as a pure function."""
        ...

    def solve(self, z0: Tensor, tensors: Sequence[Tensor]) -> Solved:
        """The solution. Nothing is recorded here."""
        ...

    def vmapped(
        self, size: int, dims: Sequence[int | None], z0: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[System, Tensor, list[Tensor]]:
        """The system of ``size`` times as many equations, with its start and tensors."""
        ...

    def linear(self, transpose: bool, at: Saved, wanted: Sequence[int] = ()) -> tuple[LinearSystem, tuple[Tensor, ...]]:
        """The linear system in this system's operator at its solution, or in the transpose, and the tensors that it takes
        after its right-hand side. ``wanted``: those of the condition's tensors whose gradients its solution is for."""
        ...


class LinearSystem(System, Protocol):
    """A w = b, with A the operator of another system or its transpose; b is the first of its tensors."""

    def vjp(self, tensors: Sequence[Tensor], linearised: Linearisation) -> Sequence[Tensor | None]:
        """−wᵀ ∂g/∂x for some x, from the other system's condition g linearised in its unknowns and in those x. For plain code
        without grad mode: no derivative of this one will be asked for."""
        ...


class ImplicitFunction(torch.autograd.Function):
    """(system, z0, *tensors) -> (z*, *facts, *inverse): only z* is differentiable, and not in z0.

    Autograd calls it in the midst of code that is compiled too, where Dynamo would read what runs.
    """

    @staticmethod
    def forward(system: System, z0: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        with full_precision(z0.device.type):
            solved = system.solve(z0, tensors)
        # An input returned as it is could not be saved as an output.
        return solved._replace(z=solved.z.view_as(solved.z)).flat

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        system, _, *tensors = inputs
        ctx.system = system
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        solved = Solved.of(output)
        ctx.inverses = len(solved.inverse)
        saved = Saved(solved.z, solved.stats.status, solved.inverse, tuple(tensors)).flat
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @left_alone
    def backward(ctx: Any, v: Tensor | None, *_: Any) -> tuple[Any, ...]:
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        if v is not None and wanted:
            for i, grad in zip(wanted, over_batched(lambda v: _pullback(ctx, v, wanted), v), strict=True):
                grads[i] = grad
        return tuple(grads)

    @staticmethod
    @left_alone
    def jvp(ctx: Any, _system: None, _z0: Tensor | None, *dx: Tensor | None) -> tuple[Tensor | None, ...]:
        # Torch calls this with forward mode off, for the levels around this one too, whose tangents would be lost: it is
        # switched on again, for tensors without the tangents of this level.
        with forward_mode_on():
            saved = [_primal(tensor) for tensor in saved_tensors(ctx)]
            at = Saved.of(saved, ctx.inverses)
            (w,) = over_batched(lambda *dx: (_pushforward(ctx.system, at, dx),), *dx)
        return (w, *(None,) * (STATS + ctx.inverses))

    @staticmethod
    @left_alone
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], system: System, z0: Tensor, *tensors: Tensor
    ) -> tuple[Any, Any]:
        size = info.batch_size
        front = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims[2:], strict=True)]
        z0 = z0.expand(size, *z0.shape) if in_dims[1] is None else z0.movedim(in_dims[1], 0)
        dims = [None if d is None else 0 for d in in_dims[2:]]
        larger, z0, front = system.vmapped(size, dims, z0, front)
        output = solve_system(larger, z0, front).flat
        out_dims = [0 if t.ndim else None for t in output]  # the counts are those of the whole batch
        split = [t.unflatten(0, (size, t.shape[0] // size)) if t.ndim else t for t in output]
        return tuple(split), tuple(out_dims)


def saved_tensors(ctx: Any) -> list[Tensor]:
    """Those that the Function has saved. Torch compares their versions here.

    Raises RuntimeError where one was changed in place since: a captured buffer, say. Its name is known in the first backward.
    """
    try:
        return without_dead_wrappers(ctx.saved_tensors)
    except RuntimeError as error:
        changed_since = ctx.system.condition.changed_since
        if changed_since is None or not changed_in_place(error):
            raise
        raise changed_since() from error


def _pullback(ctx: Any, v: Tensor, wanted: Sequence[int]) -> tuple[Tensor | None, ...]:
    """−uᵀ ∂g/∂x for the wanted inputs x of the Function, with (∂g/∂z)ᵀ u = v."""
    system: System = ctx.system
    at = Saved.of(saved_tensors(ctx), ctx.inverses)
    which = [i - 2 for i in wanted]
    if not system.own_operator or torch.is_grad_enabled() or values_hidden():
        at = at._replace(z=replace_failed(at.z, at.status))
        transposed, tensors = system.linear(True, at, which)
        u = solve_system(transposed, torch.zeros_like(at.z), (v, *tensors)).z
        return Linearisation(in_some(system.condition, at.z, at.tensors, which), [at.tensors[i] for i in which]).pull(
            -u
        )
    linearised = None if system.linearised is None else system.linearised.restricted([0, *(1 + i for i in which)])
    if not all_converged(at.status):
        linearised = None
        z = replace_failed(at.z, at.status)
        at = at._replace(z=z, tensors=replace_what_failed(system.condition, z, at.status, at.tensors))
    if linearised is None:  # one evaluation of g serves the solve and the last product
        some = [at.tensors[i] for i in which]
        linearised = Linearisation(
            lambda z, *some: in_some(system.condition, z, at.tensors, which)(*some), (at.z, *some)
        )
    transposed, tensors = system.linear(True, at, which)
    with full_precision(at.z.device.type):
        return tuple(transposed.vjp((v, *tensors), linearised))


def _pushforward(system: System, at: Saved, dx: Sequence[Tensor | None]) -> Tensor:
    """w with (∂g/∂z) w = −(∂g/∂x) dx."""
    at = at._replace(z=replace_failed(at.z, at.status))
    moving = [i for i, t in enumerate(dx) if t is not None]
    if not moving:  # z* does not move with z0
        return torch.zeros_like(at.z)
    g = in_some(system.condition, at.z, at.tensors, moving)
    rhs = -Linearisation(g, [at.tensors[i] for i in moving]).push([dx[i] for i in moving])
    tangent, tensors = system.linear(False, at)
    return solve_system(tangent, torch.zeros_like(at.z), (rhs, *tensors)).z


def _primal(tensor: Tensor) -> Tensor:
    """A tensor without its tangent of the innermost level."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    primal: Tensor = forward_ad.unpack_dual(tensor, level=0).primal
    return primal


def in_some(condition: Condition, z: Tensor, tensors: Sequence[Tensor], which: Sequence[int]) -> Callable[..., Tensor]:
    """The condition at fixed z as a function of some of its tensors."""

    def g(*some: Tensor) -> Tensor:
        full = list(tensors)
        for i, t in zip(which, some, strict=True):
            full[i] = t
        return condition(z, *full)

    return g


def solve_system(system: System, z0: Tensor, tensors: Sequence[Tensor]) -> Solved:
    """Apply the Function."""
    output: tuple[Tensor, ...]
    if inside_functorch():
        output = ImplicitFunction.apply(system, z0, *tensors)
    else:
        output = apply(ImplicitFunction, system, z0, *without_dead_wrappers(tensors))
    return Solved.of(output)
