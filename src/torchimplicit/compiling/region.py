"""What Dynamo reads of a solve inside code that it makes a graph of, or why that solve cannot be part of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import inside_transform
from torchimplicit.bounds import limits
from torchimplicit.compiling.entries import ENTRY_POINTS, LIKE_Z
from torchimplicit.graph.explicit import FACTS
from torchimplicit.linear import SOLVERS, Dense, LinearOperator
from torchimplicit.linear.iteration import EUCLIDEAN
from torchimplicit.parameters import check_args
from torchimplicit.private import dynamo, pytree
from torchimplicit.private.dynamo import AVAILABLE, LACKING
from torchimplicit.solution import Record, Solution, SolveInfo
from torchimplicit.solvers import NAMES

NO_OPTIONS = ("z0", "args", "batched", "compile")  # of what may be given by name
IN_GRAPH = ("auto", *(name for name, method in NAMES.items() if method.in_graph))
CLASSES = tuple(name.replace("_", "") for name in IN_GRAPH)
ENTRY_NAMES = ", ".join(sorted(ENTRY_POINTS))
LINEAR = tuple(name for name, solver in SOLVERS.items() if getattr(solver, "in_graph", False))
LINEAR_NAMES = ", ".join(LINEAR)
HELD = (*(name.lower() for name in LINEAR), "backtracking")  # what they, and an adjoint, may hold

WITHIN = {
    "torchimplicit_solve": "a solve within the function of a solve (a layer within the cell of another, say) would be a loop in the "
    "derivative of a loop. Write it out, make one system of both, or do without fullgraph=True",
    "tag_activation_checkpoint": "a solve within a checkpoint would be a loop there, which PyTorch does not allow. Leave it out of the "
    "checkpoint: all that a solve saves is z*, however many steps it takes",
}
"""The operators whose functions hold no solve, and why."""


def refusal(entry: str, first: Any, **options: Any) -> str | None:
    """Why a solve cannot be in a graph; None where it can. ``first`` : what is solved."""
    if not AVAILABLE:
        return LACKING
    if _inside_transform():
        return "it is inside a torch.func transform, whose levels a graph would lose"
    if torch.compiler.is_dynamo_compiling() and (around := _operator_around(tuple(WITHIN))) is not None:
        return WITHIN[around]
    if entry not in ENTRY_POINTS:
        return f"only {ENTRY_NAMES} can"
    if isinstance(first, Tensor) and first.layout != torch.strided:
        return "torch.compile has no sparse tensors"
    if options.get("constraints") is not None:
        return "constraints= are met by a method that looks at values"
    if options.get("callback") is not None:
        return "callback= is called with values"
    if options.get("trace", False):
        return "trace=True keeps a record of steps whose number is not known"
    if options.get("randomness", "error") != "error":
        return 'randomness="frozen" needs the states of the generators'
    if options.get("sparsity") not in (None, "off"):
        return "sparse matrices are factorised outside of torch"
    solver, adjoint = options.get("solver"), options.get("adjoint")
    if adjoint is not None and not _constant(adjoint, ("implicit",)):
        return (
            f"adjoint={type(adjoint).__name__}: only Implicit can, with one of {LINEAR_NAMES} without a preconditioner"
        )
    if entry == "linear_solve":
        if options.get("shortest", False) or options.get("null_space") is not None:
            return "shortest= and null_space= pose another system than that of A"
        if solver is None or _constant(solver, ("auto", *HELD)):
            return None
        return f"the solver {type(solver).__name__} is not one of Auto, {LINEAR_NAMES}, with plain numbers and without a preconditioner"
    if isinstance(solver, str) and solver not in IN_GRAPH:
        return f"solver={solver!r} is not among {', '.join(IN_GRAPH)}"
    if solver is not None and not isinstance(solver, str) and not _constant(solver, CLASSES):
        return f"the solver {type(solver).__name__} is not one of those of torchimplicit that can, with plain numbers"
    if getattr(solver, "every", 1) != 1:
        return "with every= > 1 a step is not like the one before"
    return None


def _constant(option: Any, names: tuple[str, ...]) -> bool:
    """Whether an object is of one of these classes, and all that it holds is plain."""
    if type(option).__name__ == "Geometry":
        return option == EUCLIDEAN
    if type(option).__name__.lower() not in names:
        return False
    parts = [getattr(option, name) for name in option.__dataclass_fields__]
    if getattr(option, "preconditioner", None) is not None:
        return False  # whose factors the body of a loop would not see
    return all(part is None or isinstance(part, (bool, int, float, str)) or _constant(part, HELD) for part in parts)


_inside_transform = torch.compiler.assume_constant_result(inside_transform)
_operator_around = torch.compiler.assume_constant_result(dynamo.operator_around)
attributes_may_change = torch.compiler.assume_constant_result(dynamo.attributes_may_change)


def read(entry: str, *args: Any, **options: Any) -> Solution:
    """The solve as Dynamo reads it: one operator, of the user's function and all tensors that it uses."""
    if entry == "linear_solve":
        return _read_linear(entry, *args, **options)
    return _read(entry, options, *args, **options)


def _read_linear(entry: str, A: Any, b: Tensor, **options: Any) -> Solution:
    """A z − b as a function of z. It uses b first, and then A, if that has entries: so they are its first two tensors."""
    of_A: Sequence[int] = ()
    symmetric, positive_definite = False, False
    if isinstance(A, LinearOperator):
        of_A, symmetric, positive_definite = A.batch_shape, A.symmetric, A.positive_definite
        A = A.A if isinstance(A, Dense) else A.apply
    dense = isinstance(A, Tensor)

    def residual(z: Tensor) -> Tensor:
        minus = -b
        return ((A @ z.unsqueeze(-1)).squeeze(-1) if dense else A(z)) + minus

    batch = torch.broadcast_shapes(A.shape[:-2] if dense else of_A, b.shape[:-1])
    known = {"dense": dense, "symmetric": symmetric, "positive_definite": positive_definite}
    return _read(entry, {**options, **known}, residual, b.new_zeros((*batch, b.shape[-1])), batch_ndim=len(batch))


def _read(
    entry: str,
    options: dict[str, Any],
    fn: Callable[..., Any],
    z0: Any,
    args: Sequence[Any] = (),
    *,
    batch_ndim: int = 0,
    has_aux: bool = False,
    **_: Any,
) -> Solution:
    """Dynamo takes the shapes of what an operator returns from its function. So the function returns first what the solve will, in
    shape, and then what it is there for.
    """
    from torchimplicit.compiling.operator import solve_operator  # which an older torch has no base class for

    check_args(args)
    leaves, tree = pytree.tree_flatten(z0)
    leaves = [leaf.detach().clone() for leaf in leaves]  # or a tensor that the function uses too would be taken for z
    bounds: list[Tensor] = []
    if options.get("bounds") is not None:
        lower, upper, leaves = limits(options["bounds"], leaves, tree)
        bounds, options = [*lower, *upper], {**options, "bounds": True}
    like_z = entry in LIKE_Z

    def function(*leaves: Tensor) -> Any:
        """What the operator returns, in shape, and what the function does."""
        unknowns = [leaf.view_as(leaf) for leaf in leaves]  # used first, for operands come in the order of their use
        out = fn(pytree.tree_unflatten(unknowns, tree), *args)
        aux = ()
        if has_aux:
            out, aux = out
        values, structure = pytree.tree_flatten(out)
        if like_z and structure != tree:
            raise TypeError(f"{entry}: the function must return what z is, {tree}; it returned {structure}.")
        if entry == "least_squares":
            values = [value.reshape(*value.shape[:batch_ndim], -1) for value in values]
            values = [torch.cat(values, -1)]
        values = [*values, *[limit.clone() for limit in bounds]]
        first = leaves[0]
        batch = first.shape[:batch_ndim]
        connected = sum(value.real.sum() for value in values)
        like = [torch.zeros_like(leaf) + 0 * connected.to(first.dtype) for leaf in leaves]
        real = torch.float64 if first.dtype in (torch.float64, torch.complex128) else torch.float32
        facts = [first.new_zeros(batch, dtype=dtype) for dtype in (torch.int64, torch.int64, real, real)]
        counts = [first.new_zeros((), dtype=torch.int64) for _ in range(2)]
        return (*like, *facts, *counts, *[value.clone() for value in values]), aux

    spec = {name: described(option) for name, option in options.items() if name not in NO_OPTIONS}
    found, aux = solve_operator(function, *leaves, entry=entry, unknowns=len(leaves), options=tuple(spec.items()))
    z = pytree.tree_unflatten(list(found[: len(leaves)]), tree)
    status, steps, residual, error, evaluations, products = found[len(leaves) : len(leaves) + FACTS]
    aux = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, aux)
    info = SolveInfo(
        status == 0,
        status,
        steps,
        residual,
        error,
        evaluations,
        products,
        aux if has_aux else None,
        Record(entry),
    )
    return Solution(z, info)


def read_black_box(solver: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What a black box gives, as Dynamo reads it: one operator, of the solver and all tensors that it uses."""
    from torchimplicit.compiling.operator import black_box_operator

    leaves, tree = pytree.tree_flatten(args)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def solve(*tensors: Tensor) -> Any:
        full = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            full[i] = tensor
        return solver(*pytree.tree_unflatten(full, tree))

    return black_box_operator(solve, *[leaves[i] for i in places])


def described(option: Any) -> Any:
    """An option as constants, of which :func:`_made` makes it again."""
    if option is None or isinstance(option, (bool, int, float, str)):
        return option
    if isinstance(option, (tuple, list)):
        return ("tuple", *[described(part) for part in option])
    if type(option).__name__ == "Geometry":  # the plain one
        return None
    return (
        type(option).__name__,
        *[(name, described(getattr(option, name))) for name in option.__dataclass_fields__],
    )
