"""What the direct solvers share: scaling, a state made of plain tensors, and the test for a singular matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import FEW, finished, reaches, values_hidden
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.vectors import fit, from_columns, lead_shape, to_columns, unpatterned
from torchimplicit.norms import inverse_power_of_two


class Factors(ABC):
    """A factorised matrix F = D A C, with D and C diagonal: A⁻¹ = C F⁻¹ D.

    Attributes:
        tensors: (factors of F, ..., diagonal of D, diagonal of C), each with the operator's batch shape in front: all
            there is, so that it can be handed on (out of an autograd Function, say) and rebuilt. Without the diagonals
            F is A itself.
        own: how many of them are factors of F; the first is a matrix.
    """

    own: ClassVar[int]
    title: ClassVar[str]
    final: ClassVar[bool] = True  # what it does not solve is singular

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b, or Aᴴ x = b: (*lead, *batch_shape, n). All `lead` right-hand sides share the factors.

        Nothing is raised for a singular system: its x is whatever the arithmetic gives (mostly infinite, NaN or huge)
        and the other systems' x is untouched.

        Raises:
            TypeError, ValueError: b does not fit; the message names the shape that would.
        """
        matrix = self.tensors[0]
        b = fit(b, matrix.shape[:-2], matrix.shape[-1], matrix.dtype, name="b")
        if len(self.tensors) == self.own:
            return self._inverse(b, adjoint)
        d, c = self.tensors[self.own :]
        before, after = (c, d) if adjoint else (d, c)
        return after * self._inverse(before * b, adjoint)

    def _inverse(self, b: Tensor, adjoint: bool) -> Tensor:
        batch_shape = self.tensors[0].shape[:-2]
        return from_columns(self.inverse(to_columns(b, batch_shape), adjoint), lead_shape(b, batch_shape))

    @abstractmethod
    def inverse(self, b: Tensor, adjoint: bool) -> Tensor:
        """F⁻¹ b or F⁻ᴴ b for columns b of shape (*batch_shape, n, L)."""

    @abstractmethod
    def pivots(self) -> Tensor:
        """Numbers (*batch_shape, n) of which one is zero if F is singular."""

    @cached_property
    def suspicious(self) -> Tensor:
        """Whether the pivots of each matrix are more than 1/√eps apart, or not finite: bool (*batch_shape).

        Cheap, and true of every matrix that is singular; also of regular ones that are badly scaled or conditioned.
        """
        with torch.no_grad():
            pivots = self.pivots().abs()
            if pivots.shape[-1] == 1:  # a number is as regular as its inverse is finite
                return ~(1 / pivots).isfinite().squeeze(-1) | ~pivots.isfinite().squeeze(-1)
            return ~(self._evenness > torch.finfo(pivots.dtype).eps ** 0.5)

    @cached_property
    def _evenness(self) -> Tensor:
        """The smallest pivot in parts of the largest; 0 or NaN where one is not finite."""
        pivots = self.pivots().abs()
        smallest, largest = pivots.aminmax(dim=-1) if pivots.shape[-1] else (pivots.sum(-1) + 1, pivots.sum(-1) + 1)
        return smallest / largest

    @property
    def some_suspicious(self) -> bool:
        """Whether a matrix is, of several unknowns each; inside a functorch transform always."""
        limit = torch.finfo(self.tensors[0].dtype).eps ** 0.5
        if self.tensors[0].numel() <= FEW and not values_hidden():
            rows = [[abs(x) for x in row] for row in self.pivots().detach().flatten(0, -2).tolist()]
            return not all(x > limit * max(row) for row in rows for x in row)
        with torch.no_grad():
            return reaches(self._evenness, limit)

    @cached_property
    def singular(self) -> Tensor:
        """Whether each matrix is singular to working precision, or not finite: bool (*batch_shape).

        It is, if F is nearer to a singular matrix than 8 √n eps, the level that rounding errors reach in practice: a
        pivot says so, or ‖F⁻¹‖, estimated by one step of the power method on F⁻¹F⁻ᴴ. F has entries of size one in
        every row and column, so bad scaling of A's rows or columns does not count: diag(1e-20, 1) is regular.
        Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), sections 7.3 and 15.1.
        """
        if finished(~self.suspicious):
            return torch.zeros_like(self.suspicious)
        with torch.no_grad():
            pivots, matrix = self.pivots().abs(), self.tensors[0]
            n = matrix.shape[-1]
            floor = 8 * n**0.5 * torch.finfo(pivots.dtype).eps
            x = self._inverse(unpatterned(pivots).to(matrix.dtype), adjoint=False)
            x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            growth = torch.linalg.vector_norm(self._inverse(x, adjoint=True), dim=-1)
            regular = (pivots > floor).all(-1) & pivots.isfinite().all(-1) & (growth * floor < 1)
        return ~regular


class DirectSolver(ABC):
    """A solver that factorises the dense matrix (an operator without entries is asked for its columns)."""

    in_graph: ClassVar[bool] = False  # whether a solve by it may be part of a graph of torch.compile
    state: ClassVar[type[Factors]]

    def factorize(self, operator: LinearOperator) -> Factors:
        """The factors of every matrix of the batch; A and Aᴴ are solved from the same ones.

        Raises:
            ValueError: the operator is not square.
        """
        return self.state(self._factorize(square(operator, type(self).__name__).to_dense()))

    @abstractmethod
    def _factorize(self, A: Tensor) -> tuple[Tensor, ...]: ...

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> Factors:
        """The state again, from its `tensors`."""
        return cls.state(tensors)


def square(operator: LinearOperator, solver: str) -> LinearOperator:
    """The operator itself, if it has as many rows as columns."""
    if operator.shape[-1] != operator.shape[-2]:
        raise ValueError(
            f"{solver} solves square systems and was given an operator of shape {tuple(operator.shape)}; "
            "expected (..., n, n)"
        )
    return operator


def equilibrate(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(D A C, d, c): rows, then columns, of A scaled to a largest entry in [1, 2) by powers of two, which are exact.

    Source: Golub and Van Loan, Matrix Computations (2013), section 3.5.2.
    """
    size = A.detach().abs()
    d = inverse_power_of_two(size.amax(-1) if size.shape[-1] else size.sum(-1))
    size = d.unsqueeze(-1) * size
    c = inverse_power_of_two(size.amax(-2) if size.shape[-1] else size.sum(-2))
    return d.unsqueeze(-1) * A * c.unsqueeze(-2), d, c
