"""The diagonal of a matrix, or the blocks on it, as a preconditioner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.linear.dense import Dense
from torchimplicit.linear.entries import entries_of
from torchimplicit.linear.factors import square
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.solver import Preconditioner
from torchimplicit.linear.vectors import fit
from torchimplicit.parameters import check_count


@dataclass(frozen=True)
class Jacobi:
    """The blocks on the diagonal of a matrix in its place: for unknowns in different units, or several at each point.

    Attributes:
        block: unknowns that stand together in a block; 1 is the diagonal.

    A block that is singular counts as the identity.
    Source: Saad, Iterative Methods for Sparse Linear Systems (2003), section 10.2.
    """

    block: int = 1

    def __post_init__(self) -> None:
        check_count("Jacobi: block", self.block)

    def factorize(self, operator: LinearOperator) -> Preconditioner:
        """The inverse blocks of a Dense or Sparse operator, or of a Jacobian whose pattern is known (``sparsity=``).

        Raises:
            TypeError: the entries are not at hand.
            ValueError: the operator is not square, or does not consist of blocks of this size.
        """
        n, k = square(operator, "Jacobi").shape[-1], self.block
        if n % k:
            raise ValueError(f"Jacobi: {n} unknowns do not make blocks of {k}.")
        blocks = _blocks(operator, k)
        inverse, failed = torch.linalg.inv_ex(blocks)
        eye = torch.eye(k, dtype=blocks.dtype, device=blocks.device)
        usable = (failed == 0)[..., None, None] & inverse.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        return BlockInverse(torch.where(usable, inverse, eye))


class BlockInverse:
    """Inverse blocks (*batch_shape, n / k, k, k)."""

    def __init__(self, inverse: Tensor) -> None:
        self.inverse = inverse

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """The product of each block with its part of b (*lead, *batch_shape, n)."""
        *batch, count, k, _ = self.inverse.shape
        b = fit(b, batch, count * k, self.inverse.dtype, name="b")
        if k == 1:
            d = self.inverse.flatten(-3)
            return b * (d.conj() if adjoint else d)
        inverse = self.inverse.mH if adjoint else self.inverse
        return (inverse @ b.unflatten(-1, (count, k)).unsqueeze(-1)).squeeze(-1).flatten(-2)


def _blocks(operator: LinearOperator, k: int) -> Tensor:
    """(*batch_shape, n / k, k, k)."""
    count = operator.shape[-1] // k
    if isinstance(operator, Dense):
        tiles = operator.A.unflatten(-1, (count, k)).unflatten(-3, (count, k))
        return tiles.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
    matrix = entries_of(operator, "Jacobi")
    rows, columns = matrix.rows, matrix.columns
    within = (rows // k == columns // k).nonzero().flatten()
    place = rows[within] * k + columns[within] % k
    zeros = torch.zeros(*matrix.batch_shape, count * k * k, dtype=matrix.dtype, device=matrix.device)
    return zeros.index_add(-1, place, matrix.values[..., within]).unflatten(-1, (count, k, k))
