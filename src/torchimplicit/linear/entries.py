"""The entries of an operator, for what is made of them."""

from __future__ import annotations

from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.lapack import available
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.sparse import Sparse


def entries_of(operator: LinearOperator, wanted_by: str) -> Sparse:
    """The operator as a sparse matrix: itself, or a Jacobian whose pattern is known, assembled on it. Plain numbers on the CPU.

    Raises:
        TypeError: it is another operator, on another device, or autograd records what it is made of.
    """
    jacobian = isinstance(operator, Jacobian) and operator.memory is not None
    if not (isinstance(operator, Sparse) or jacobian):
        raise TypeError(
            f"{wanted_by} needs the entries of a sparse matrix, and got {operator!r}. Pass a sparse tensor or linear.Sparse to "
            "linear_solve, or sparsity='detect' (or a pattern) to root, minimize, least_squares or fixed_point."
        )
    source = operator.z if isinstance(operator, Jacobian) else operator.values
    if not available(source):
        raise TypeError(
            f"{wanted_by} factorises plain numbers on the CPU, outside of autograd, torch.func and torch.compile; these are on "
            f"{operator.device}{', recorded by autograd' if source.requires_grad else ''}. Take adjoint=Implicit(), which asks for no "
            "recorded steps, or an iterative solver."
        )
    return operator if isinstance(operator, Sparse) else operator.memory.assembled(operator)
