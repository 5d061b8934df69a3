"""The entries of an operator, for what is made of them."""

from __future__ import annotations

from torch import Tensor

from torchimplicit.linear.jacobian import Jacobian, memory_of
from torchimplicit.linear.lapack import available
from torchimplicit.linear.memory import WITHOUT
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.sparse import Sparse


def entries_of(operator: LinearOperator, wanted_by: str) -> Sparse:
    """The operator as a sparse matrix: itself, or a Jacobian whose pattern is known, assembled on it. Plain numbers on the CPU.

    Raises:
        TypeError: it is another operator, on another device, or autograd records what it is made of.
    """
    memory = memory_of(operator)
    if isinstance(operator, Sparse):
        _check(operator.values, wanted_by)
        return operator
    if isinstance(operator, Jacobian) and memory is not None:
        _check(operator.z, wanted_by)
        return memory.assembled(operator, wanted_by)
    raise TypeError(
        f"{wanted_by} needs the entries of a sparse matrix, and got {operator!r}. Pass a sparse tensor or linear.Sparse to "
        f"linear_solve, or sparsity='detect' (or a pattern) to root, minimize, least_squares or fixed_point. {WITHOUT}"
    )


def _check(source: Tensor, wanted_by: str) -> None:
    if not available(source):
        raise TypeError(
            f"{wanted_by} takes plain numbers on the CPU, outside of torch.func and torch.compile; these are on {source.device}"
            f"{', recorded by autograd' if source.requires_grad else ''}. Take adjoint=Implicit(), which records no steps, or an "
            "iterative solver."
        )
