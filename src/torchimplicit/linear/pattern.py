"""The places of the entries of sparse matrices: products are calls of a CSR routine, with the transposed places stored once."""

from __future__ import annotations

import warnings
from functools import cache, cached_property
from importlib.util import find_spec

import torch
from torch import Tensor

from torchimplicit.compressed import index_dtype, turned
from torchimplicit.private.autograd import storage, version

NARROW = 16  # diagonals of a band that has more room for zeros than sparse factors
SHORTEST = 8  # blocks of what is called a chain
FULL_LINE = 10  # times √n: the entries of a line that an order of the others leaves out (as Davis's COLAMD does)
FULL = 4  # times as many places as entries, which the blocks of a chain may have


class Pattern:
    """The places (rows[e], columns[e]) of the entries of (m, n) matrices, ordered by rows.

    Raises ValueError where they are not in order, or outside of the matrix.
    """

    def __init__(self, rows: Tensor, columns: Tensor, m: int, n: int) -> None:
        if len(rows):
            ordered = bool((rows[1:] >= rows[:-1]).all())
            largest = int(rows[-1]), int(columns.max())
            if not ordered or min(int(rows[0]), int(columns.min())) < 0 or largest[0] >= m or largest[1] >= n:
                raise ValueError(
                    f"Pattern: the places must be ordered by rows, within a matrix of shape ({m}, {n}); rows are "
                    f"{'' if ordered else 'not '}in order, the largest row and column are {largest[0]} and {largest[1]}"
                )
        self.rows, self.columns, self.m, self.n = rows, columns, m, n
        self._blocks: tuple[int, Tensor, Tensor] | None = None
        self._kept: tuple[Tensor, int, Tensor] | None = None

    @property
    def entries(self) -> int:
        """How many places there are."""
        return len(self.rows)

    @cached_property
    def bandwidths(self) -> tuple[int, int]:
        """The largest i − j and j − i of an entry, no less than 0."""
        if not len(self.rows):
            return 0, 0
        below, above = (self.rows - self.columns).aminmax()
        return max(int(above), 0), max(-int(below), 0)

    @cached_property
    def chain(self) -> int:
        """The size of the blocks in which the matrix is block tridiagonal, and for its most part full: that of the Jacobian of a
        sequence, in which an element depends on those beside it. 0: it is none."""
        n, reach = self.n, max(self.bandwidths)
        if self.m != n:
            return 0
        for p in range((reach + 2) // 2, min(reach, n // SHORTEST) + 1):
            room = (3 if min(self.bandwidths) >= p else 2) * n * p
            if len(self.rows) * FULL < room:  # of larger blocks there is less
                return 0
            if n % p == 0 and bool(((self.rows // p - self.columns // p).abs() <= 1).all()):
                return p
        return 0

    @cached_property
    def order(self) -> Tensor:
        """The order of the entries by columns."""
        starts, columns = self.blocks(1)
        return turned(torch.arange(len(columns), device=columns.device), starts, columns, self.n).entries

    @cached_property
    def transposed(self) -> Pattern:
        """That of the transposed matrices, whose entries are in this ``order``."""
        return Pattern(self.columns[self.order], self.rows[self.order], self.n, self.m)

    @cached_property
    def symmetric(self) -> bool:
        """Whether (j, i) is a place where (i, j) is one; seen only where the entries of each row are in order."""
        other = self.transposed
        return torch.equal(other.rows, self.rows) and torch.equal(other.columns, self.columns)

    @cached_property
    def width(self) -> int:
        """The half bandwidth in the order of Cuthill and McKee, which keeps neighbours together; and one more for each full line of a
        symmetric pattern, which fills no more than itself where it is eliminated last. Needs SciPy."""
        full = self.starts.diff() > FULL_LINE * self.n**0.5
        if bool(full.any()) and self.symmetric:
            rest = ~(full[self.rows] | full[self.columns])
            return int(full.sum()) + Pattern(self.rows[rest], self.columns[rest], self.m, self.n).width
        return self._width

    @property
    def _width(self) -> int:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import reverse_cuthill_mckee

        starts, columns = (index.cpu().numpy() for index in self.blocks(1))
        order = reverse_cuthill_mckee(
            csr_array((columns * 0.0 + 1.0, columns, starts), shape=(self.m, self.n)), self.symmetric
        )
        place = torch.empty(self.n, dtype=torch.int64)
        place[torch.as_tensor(order.copy(), dtype=torch.int64)] = torch.arange(self.n)
        return int((place[self.rows.cpu()] - place[self.columns.cpu()]).abs().max()) if len(columns) else 0

    @cached_property
    def starts(self) -> Tensor:
        """Where the entries of each row start, (m + 1,)."""
        counts = torch.bincount(self.rows, minlength=self.m)
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    def blocks(self, k: int) -> tuple[Tensor, Tensor]:
        """(starts, columns) of k matrices as the blocks of one; the last that was asked for is kept."""
        if self._blocks is None or self._blocks[0] != k:
            each = torch.arange(k, device=self.rows.device).unsqueeze(-1)
            starts = (self.starts[:-1] + each * len(self.rows)).flatten()
            starts = torch.cat([starts, starts.new_full((1,), k * len(self.rows))])
            columns = (self.columns + each * self.n).flatten()
            index = index_dtype(k * self.m, k * self.n, k * len(self.rows))
            self._blocks = k, starts.to(index), columns.to(index)
        return self._blocks[1:]

    def matrix(self, values: Tensor) -> Tensor:
        """Matrices with entries (*batch, e) as the blocks of one tensor of CSR layout."""
        k = values.shape[:-1].numel()
        starts, columns = self.blocks(k)
        return _csr(starts, columns, values.resolve_conj().reshape(-1), (k * self.m, k * self.n))

    def transposed_values(self, values: Tensor) -> Tensor:
        """The entries (..., e) in the order of the transposed ones, conjugated; the last are kept, for other products with them."""
        kept = self._kept
        same = kept is not None and storage(kept[0]) == storage(values) and kept[1] == version(values)
        if kept is not None and same and kept[0].shape == values.shape and kept[0].stride() == values.stride():
            return kept[2]
        found = values.index_select(-1, self.order).conj().resolve_conj()
        if not values.is_inference():
            self._kept = values.detach(), version(values), found
        return found

    def product(self, values: Tensor, x: Tensor, adjoint: bool) -> Tensor:
        """A x, or Aᴴ x, for matrices with entries (*batch, e) and vectors (*lead, *batch, n)."""
        if adjoint:
            return _product(self.transposed, self.transposed_values(values), x)
        return _product(self, values, x)

    def sampled(self, u: Tensor, w: Tensor, lead: tuple[int, ...]) -> Tensor:
        """The entries of u wᴴ in their places, (*batch, e), added up over the dimensions ``lead``."""
        products = u.index_select(-1, self.rows) * w.index_select(-1, self.columns).conj()
        return products.sum(lead) if lead else products


class FullBand(Pattern):
    """All places with i − j ≤ lower and j − i ≤ upper of (n, n) matrices. They are listed only where they are asked for."""

    def __init__(self, lower: int, upper: int, n: int) -> None:
        self.m = self.n = n
        self.lower, self.upper = self.bandwidths = min(lower, n - 1), min(upper, n - 1)
        self.width = max(self.bandwidths)
        self._blocks = self._kept = None

    @property
    def diagonals(self) -> int:
        """How many there are."""
        return self.lower + self.upper + 1

    @property
    def entries(self) -> int:
        """How many places there are."""
        return self.n * self.diagonals - sum(k * (k + 1) // 2 for k in self.bandwidths)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        rows = torch.arange(self.n).unsqueeze(-1)
        columns = rows + torch.arange(-self.lower, self.upper + 1)
        inside = (columns >= 0) & (columns < self.n)
        return rows.expand_as(columns)[inside], columns[inside]

    @property
    def rows(self) -> Tensor:  # type: ignore[override]
        """The row of each entry."""
        return self._places[0]

    @property
    def columns(self) -> Tensor:  # type: ignore[override]
        """The column of each entry."""
        return self._places[1]


def places(mask: Tensor) -> Tensor:
    """Where a mask (n,) is True; on a processor NumPy, if it is there, finds that in a third of the time."""
    if mask.device.type == "cpu" and _numpy():
        import numpy as np

        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().flatten()


@cache
def _numpy() -> bool:
    return find_spec("numpy") is not None


def _product(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
    batch = values.shape[:-1]
    k = batch.numel()
    lead = x.shape[: x.ndim - 1 - len(batch)]
    if not (k and x.numel() and len(pattern.rows)):
        return x.new_zeros((*x.shape[:-1], pattern.m))
    matrix = pattern.matrix(values)
    x = x.resolve_conj()
    if not lead:
        return (matrix @ x.reshape(-1)).reshape(*batch, pattern.m)
    return (matrix @ x.reshape(-1, k * pattern.n).mT).mT.reshape(*lead, *batch, pattern.m)


def _csr(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    _announced()
    return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


@cache
def _announced() -> None:
    """Torch says once in each process that this layout is new; that is nothing to the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))
