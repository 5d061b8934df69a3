"""Least squares, and shortest solutions, as regular symmetric systems."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.linear.dense import Dense
from torchimplicit.linear.direct import Direct
from torchimplicit.linear.estimated import Estimated
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.sparse import Sparse
from torchimplicit.linear.vectors import fit
from torchimplicit.norms import inverse_power_of_two


class Augmented(LinearOperator):
    """The matrix [[I, A], [Aᴴ, 0]] for A (*batch_shape, m, n), m ≥ n: Hermitian, and regular where A has full rank.

    Of (b, 0) its solution is (b − A z, z) with the z for which ‖A z − b‖ is smallest; of (0, c) it is (y, −λ) with the shortest y
    for which Aᴴ y = c.
    Source: Björck, Numerical Methods for Least Squares Problems (1996), section 1.1.
    """

    parts = ("A",)
    leading = True

    def __init__(self, A: LinearOperator) -> None:
        self.m, self.n = A.shape[-2:]
        size = self.m + self.n
        super().__init__((*A.batch_shape, size, size), A.dtype, A.device, symmetric=True)
        self.A = A
        self.explicit = A.explicit

    def matvec(self, x: Tensor) -> Tensor:
        r, z = x.split([self.m, self.n], -1)
        return torch.cat([r + self.A.apply(z), self.A.apply(r, adjoint=True)], -1)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self.matvec(y)

    def to_dense(self) -> Tensor:
        A = self.A.to_dense()
        eye = torch.eye(self.m, dtype=A.dtype, device=A.device).expand(*A.shape[:-2], self.m, self.m)
        zero = torch.zeros((*A.shape[:-2], self.n, self.n), dtype=A.dtype, device=A.device)
        return torch.cat([torch.cat([eye, A], -1), torch.cat([A.mH, zero], -1)], -2)

    def direct(self) -> Direct | None:
        if isinstance(self.A, Dense):
            return TriangularLeastSquares(self.A.A)
        return self._sparse(self.A).direct() if isinstance(self.A, Sparse) else None

    def _sparse(self, A: Sparse) -> Sparse:
        place = torch.arange(self.m, device=self.device)
        rows = torch.cat([place, A.rows, A.columns + self.m])
        columns = torch.cat([place, A.columns + self.m, A.rows])
        one = torch.ones((*self.batch_shape, self.m), dtype=self.dtype, device=self.device)
        values = torch.cat([one, A.values, A.values.conj()], -1)
        order = torch.argsort(rows * (self.m + self.n) + columns)
        pattern = Pattern(rows[order], columns[order], self.m + self.n, self.m + self.n)
        return Sparse(values[..., order], pattern, symmetric=True)


class TriangularLeastSquares(Estimated):
    """By A = Q R: r = (I − Q Qᴴ) f + Q y with Rᴴ y = g, and R z = Qᴴ f − y, solve r + A z = f, Aᴴ r = g.

    Source: Björck, BIT 7 (1967) 257-278.
    """

    title, final = "QR", True

    def __init__(self, A: Tensor) -> None:
        self.m = A.shape[-2]
        finite = A.detach().isfinite().flatten(-2).all(-1)[..., None, None]
        self.Q, R = torch.linalg.qr(torch.where(finite, A, 0))
        self.R = torch.where(finite, R, torch.nan)

        def units() -> tuple[Tensor, Tensor]:
            size = A.detach().abs()
            d = torch.cat([torch.ones_like(size[..., 0]), inverse_power_of_two(size.amax(-2))], -1)
            return d, d

        super().__init__(A.dtype, units)

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """(r, z) for (f, g): (*lead, *batch_shape, m + n). The matrix is its own adjoint."""
        Q, R = self.Q, self.R
        b = fit(b, R.shape[:-2], self.m + R.shape[-1], self.dtype, name="b").unsqueeze(-1)
        f, g = b.split([self.m, R.shape[-1]], -2)
        y = torch.linalg.solve_triangular(R.mH, g, upper=False)
        inside = Q.mH @ f
        r = f + Q @ (y - inside)
        return torch.cat([r, torch.linalg.solve_triangular(R, inside - y, upper=True)], -2).squeeze(-1)
