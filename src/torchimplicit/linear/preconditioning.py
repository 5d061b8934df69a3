"""What may be given as a preconditioner, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from torchimplicit.linear.conversion import as_operator, is_matrix
from torchimplicit.linear.matrix_free import MatrixFree
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.solver import LinearSolver, Preconditioner, can_solve, is_linear_solver, written

Preconditioning = Preconditioner | LinearSolver | LinearOperator | Tensor | Callable[[Tensor], Tensor] | None


def check_preconditioner(preconditioner: object) -> None:
    """Raise TypeError unless it is None, or may be given as a preconditioner."""
    if isinstance(preconditioner, type):
        raise TypeError(f"preconditioner is a class; call it: {written(preconditioner)}")
    if preconditioner is None or is_matrix(preconditioner):
        return
    if not (can_solve(preconditioner) or is_linear_solver(preconditioner) or callable(preconditioner)):
        raise TypeError(
            f"preconditioner is a {type(preconditioner).__name__}; expected an object with solve(b, adjoint=False), such as "
            "LU().factorize(nearby_operator), a solver such as LU(), a matrix near A such as Diagonal(d), or a callable r -> M r"
        )


def prepare(preconditioner: Preconditioning, operator: LinearOperator) -> Preconditioner | None:
    """A solver is factorised on the operator, a matrix is solved by its direct state; a state is taken as it is, and so is a
    function."""
    if is_matrix(preconditioner):
        near = as_operator(preconditioner)
        state = near.direct()
        if state is None:
            raise TypeError(
                f"preconditioner is {near!r}, near A, which has no direct solve. Pass an operator that has one, such as "
                "a Diagonal, or where the products of this one approximate A⁻¹, its inverse: linear.as_operator(M).inverse"
            )
        return state
    if preconditioner is None or can_solve(preconditioner):
        return preconditioner
    if is_linear_solver(preconditioner):
        return preconditioner.factorize(operator)
    assert callable(preconditioner)  # as was checked when it was given
    return GivenInverse(preconditioner, operator)


class GivenInverse:
    """r -> M r with M about A⁻¹, for vectors r (*batch_shape, n). Where A is not symmetric, Mᴴ is its vector-Jacobian product."""

    def __init__(self, product: Callable[[Tensor], Tensor], operator: LinearOperator) -> None:
        self._products = MatrixFree(
            product,
            n=operator.shape[-1],
            batch_shape=operator.batch_shape,
            dtype=operator.dtype,
            device=operator.device,
            symmetric=operator.symmetric,  # then Mᴴ is no better than M
        )

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """M b or Mᴴ b, (*lead, *batch_shape, n)."""
        try:
            return self._products.apply(b, adjoint)
        except ValueError as error:
            raise ValueError(
                f"preconditioner: {error}. It is a callable r -> M r; or pass an object with solve(b, adjoint=False)."
            ) from error
