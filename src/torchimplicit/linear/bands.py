"""Banded matrices: a few diagonals, and a solve that takes time and memory in proportion to their entries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchimplicit.autograd.transforms import tracing
from torchimplicit.linear.bilinear import multiply
from torchimplicit.linear.block_elimination import BlockElimination
from torchimplicit.linear.direct import Direct
from torchimplicit.linear.lapack import BandLU, available
from torchimplicit.linear.operators import LinearOperator


class Banded(LinearOperator):
    """Matrices (*batch_shape, n, n) whose entries stand on a few diagonals.

    Args:
        bands: (*batch_shape, lower + upper + 1, n), laid out as for ``scipy.linalg.solve_banded``: A[i, j] stands at
            ``bands[upper + i − j, j]``. What lies outside the matrix is not read, and has gradient 0.
        lower, upper: the numbers of diagonals below and above the main one.
        symmetric, positive_definite: promises.

    On the CPU systems are solved by LAPACK (gttrf and gbtrf, or pttrf, by way of SciPy), all matrices of a batch as one. Where SciPy is
    missing, elsewhere, and where the entries of the solution's steps are differentiated, by elimination of every other block
    of unknowns (:class:`torchimplicit.linear.block_elimination.BlockElimination`), in torch.

    Raises:
        ValueError: the number of bands is not lower + upper + 1, or an integer dtype.
    """

    explicit = True
    leading = True
    parts = ("bands",)
    options = ("lower", "upper", "symmetric", "positive_definite")

    def __init__(
        self, bands: Tensor, lower: int, upper: int, symmetric: bool = False, positive_definite: bool = False
    ) -> None:
        floating = bands.is_floating_point() or bands.is_complex()
        if bands.ndim < 2 or bands.shape[-2] != lower + upper + 1 or min(lower, upper) < 0 or not floating:
            raise ValueError(
                f"Banded got bands of shape {tuple(bands.shape)} and dtype {bands.dtype} with lower={lower} and upper={upper}; "
                f"expected (..., {lower + upper + 1}, n) of a floating or complex dtype"
            )
        n = bands.shape[-1]
        facts = {"symmetric": symmetric, "positive_definite": positive_definite}
        super().__init__((*bands.shape[:-2], n, n), bands.dtype, bands.device, lower=lower, upper=upper, **facts)
        self.bands, self.lower, self.upper = bands, lower, upper
        self._places = Band(lower, upper, n)

    @property
    def diagonals(self) -> dict[int, Tensor]:
        """The diagonal j − i = k, (*batch_shape, n − |k|), for each k."""
        n = self.shape[-1]
        rows = {k: self.bands[..., self.upper - k, :] for k in range(-self.lower, self.upper + 1) if abs(k) < n}
        return {k: row[..., k:] if k > 0 else row[..., : n + k] for k, row in rows.items()}

    @property
    def sign(self) -> int:
        """1 or −1 where all the matrices are Hermitian, as far as a product could tell, and have diagonals of that sign; else 0."""
        bands, on = self.bands.detach(), self.upper
        diagonal = bands[..., on, :]
        if diagonal.is_complex():
            if not bool((diagonal.imag.abs() <= torch.finfo(self.dtype).eps ** 0.5 * diagonal.real.abs()).all()):
                return 0
            diagonal = diagonal.real
        if self.lower != self.upper or not diagonal.numel():
            return 0
        least, most = (float(end) for end in diagonal.aminmax())
        if not (least > 0 or most < 0):
            return 0
        same = torch.finfo(self.dtype).eps ** 0.5 * max(abs(least), abs(most))
        for k in range(1, min(self.upper, self.shape[-1] - 1) + 1):
            above, below = bands[..., on - k, k:], bands[..., on + k, : self.shape[-1] - k]
            if not bool((above - below.conj()).abs().amax() <= same):
                return 0
        return 1 if least > 0 else -1

    def matvec(self, x: Tensor) -> Tensor:
        return self._written_out(x, False) if tracing() else multiply(self._places, self.bands.flatten(-2), x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return (
            self._written_out(y, True) if tracing() else multiply(self._places, self.bands.flatten(-2), y, adjoint=True)
        )

    def _written_out(self, x: Tensor, adjoint: bool) -> Tensor:
        """For a graph."""
        n, total = self.shape[-1], torch.zeros_like(x)
        for k, d in self.diagonals.items():
            k, d = (-k, d.conj()) if adjoint else (k, d)
            total = total + pad(d * x[..., max(k, 0) : n + min(k, 0)], (max(-k, 0), max(k, 0)))
        return total

    def to_dense(self) -> Tensor:
        zeros = torch.zeros(tuple(self.shape), dtype=self.dtype, device=self.device)
        return sum((torch.diag_embed(d, offset=k) for k, d in self.diagonals.items()), zeros)

    def _adjoint(self) -> LinearOperator:
        n = self.shape[-1]
        rows = [
            pad(self.diagonals[-k].conj(), (max(k, 0), max(-k, 0)))
            if abs(k) < n
            else torch.zeros_like(self.bands[..., 0, :])
            for k in range(self.lower, -self.upper - 1, -1)
        ]
        return Banded(torch.stack(rows, -2), self.upper, self.lower)

    def direct(self) -> Direct | None:
        if available(self.bands):
            return BandLU(self.bands, self.lower, self.upper, self.positive_definite)
        below, diagonal, above = self._blocks()
        return BlockElimination(below[..., 1:, :, :], diagonal, above[..., :-1, :, :], n=self.shape[-1])

    def _blocks(self) -> tuple[Tensor, ...]:
        """The same matrix as a block tridiagonal one, the blocks below, on and above the diagonal, (*batch_shape, N, p, p) each.
        The last block is filled up by the identity."""
        n, p = self.shape[-1], max(self.lower, self.upper, 1)
        N = -(-n // p)
        bands = pad(self.bands, (0, N * p - n)).flatten(-2)
        row = torch.arange(N * p, device=self.device).reshape(N, p, 1)
        found = []
        for side in (-1, 0, 1):
            column = row.mT + side * p
            inside = (
                (row - column <= self.lower) & (column - row <= self.upper) & (column >= 0) & (column < n) & (row < n)
            )
            place = torch.where(inside, (self.upper + row - column) * (N * p) + column, 0)
            block = torch.where(inside, bands[..., place], 0)
            found.append(torch.where((row == column) & (row >= n), 1, block) if side == 0 else block)
        return tuple(found)


class Band:
    """The places of a band, in the layout of :class:`Banded`."""

    def __init__(self, lower: int, upper: int, n: int) -> None:
        self.n, self.upper = n, upper
        self.offsets = [k for k in range(-lower, upper + 1) if abs(k) < n]
        self.width = lower + upper + 1

    def _ranges(self, k: int) -> tuple[slice, slice]:
        """The rows and the columns of the diagonal j − i = k."""
        return slice(max(-k, 0), self.n - max(k, 0)), slice(max(k, 0), self.n + min(k, 0))

    def product(self, values: Tensor, x: Tensor, adjoint: bool) -> Tensor:
        """A x, or Aᴴ x."""
        bands, y = values.unflatten(-1, (self.width, self.n)), torch.zeros_like(x)
        for k in self.offsets:
            rows, columns = self._ranges(k)
            d = bands[..., self.upper - k, columns]
            if adjoint:
                y[..., columns].addcmul_(d.conj(), x[..., rows])
            else:
                y[..., rows].addcmul_(d, x[..., columns])
        return y

    def sampled(self, u: Tensor, w: Tensor, lead: tuple[int, ...]) -> Tensor:
        """The entries of u wᴴ within the band, zeros outside the matrix."""
        shape = u.shape[len(lead) : -1]
        bands = torch.zeros((*shape, self.width, self.n), dtype=u.dtype, device=u.device)
        for k in self.offsets:
            rows, columns = self._ranges(k)
            products = u[..., rows] * w[..., columns].conj()
            bands[..., self.upper - k, columns] = products.sum(lead) if lead else products
        return bands.flatten(-2)


def tridiagonal(
    below: Tensor, diagonal: Tensor, above: Tensor, symmetric: bool = False, positive_definite: bool = False
) -> Banded:
    """The tridiagonal matrices with diagonals (..., n − 1), (..., n) and (..., n − 1)."""
    bands = torch.stack([pad(above, (1, 0)), diagonal, pad(below, (0, 1))], -2)
    return Banded(bands, 1, 1, symmetric, positive_definite)


def banded(operator: LinearOperator) -> Banded:
    """The entries of an operator that is known to be banded, from lower + upper + 1 products, of which each answers for every so
    manyth column."""
    lower, upper = int(operator.structure.lower), int(operator.structure.upper)
    width, n = lower + upper + 1, operator.shape[-1]
    j = torch.arange(n, device=operator.device)
    combs = (j % width == torch.arange(width, device=operator.device).unsqueeze(-1)).to(operator.dtype)
    batch = operator.batch_shape
    answers = operator.apply(combs.reshape(width, *(1,) * len(batch), n).expand(width, *batch, n)).movedim(0, -2)
    i = j + torch.arange(-upper, lower + 1, device=operator.device).unsqueeze(-1)
    inside = (i >= 0) & (i < n)
    bands = answers.flatten(-2)[..., torch.where(inside, (j % width) * n + i, 0)]
    facts = {"symmetric": operator.symmetric, "positive_definite": operator.positive_definite}
    return Banded(torch.where(inside, bands, 0), lower, upper, **facts)
