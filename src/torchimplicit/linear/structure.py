"""What is known of a matrix beside its entries, and what follows from it for sums, products, inverses."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Structure(NamedTuple):
    """Facts about a matrix A. Each is a promise, never checked; what is not known is not promised.

    Attributes:
        lower: A[i, j] = 0 where i − j > lower. Infinite: nothing is known.
        upper: A[i, j] = 0 where j − i > upper.
        symmetric: A is its own conjugate transpose (Hermitian, for complex dtypes).
        positive_definite: A is Hermitian positive definite.
    """

    lower: float = math.inf
    upper: float = math.inf
    symmetric: bool = False
    positive_definite: bool = False

    def as_keywords(self) -> dict[str, Any]:
        """The facts by name, as the constructor of an operator takes them."""
        return dict(zip(self._fields, self))

    @property
    def diagonal(self) -> bool:
        """Only the diagonal is not zero."""
        return self.lower <= 0 and self.upper <= 0

    @property
    def tridiagonal(self) -> bool:
        """Only the diagonal and its neighbours are not zero."""
        return self.lower <= 1 and self.upper <= 1

    @property
    def banded(self) -> bool:
        """The diagonals that are not zero are known to be few, or at least finite in number."""
        return self.lower < math.inf and self.upper < math.inf

    @property
    def lower_triangular(self) -> bool:
        """Nothing stands above the diagonal."""
        return self.upper <= 0

    @property
    def upper_triangular(self) -> bool:
        """Nothing stands below the diagonal."""
        return self.lower <= 0

    @property
    def names(self) -> tuple[str, ...]:
        """The facts in words, the narrowest of those that say the same."""
        bands = ("diagonal", "tridiagonal", "lower_triangular", "upper_triangular", "banded")
        band = [name for name in bands if getattr(self, name)][:1]
        kinds = ["positive_definite" if self.positive_definite else "symmetric"] if self.symmetric else []
        return (*band, *kinds)

    def completed(self) -> Structure:
        """With what the facts imply about each other: a definite matrix is symmetric, the bands of a symmetric one are the same."""
        if not (self.symmetric or self.positive_definite):
            return self
        width = min(self.lower, self.upper)
        return Structure(width, width, True, self.positive_definite)

    def adjoint(self) -> Structure:
        """Of Aᴴ, and of Aᵀ."""
        return self._replace(lower=self.upper, upper=self.lower)

    def plus(self, other: Structure) -> Structure:
        """Of A + B."""
        return Structure(
            max(self.lower, other.lower),
            max(self.upper, other.upper),
            self.symmetric and other.symmetric,
            self.positive_definite and other.positive_definite,
        )

    def times(self, other: Structure) -> Structure:
        """Of A B. It is symmetric only where the two commute, which nobody promises."""
        return Structure(self.lower + other.lower, self.upper + other.upper)

    def scaled(self, real: bool, positive: bool) -> Structure:
        """Of c A for a number c."""
        symmetric = self.symmetric and real
        return self._replace(symmetric=symmetric, positive_definite=self.positive_definite and positive)

    def inverse(self) -> Structure:
        """Of A⁻¹, which is triangular or diagonal with A, and otherwise full."""
        lower, upper = (0 if width <= 0 else math.inf for width in (self.lower, self.upper))
        return self._replace(lower=lower, upper=upper)

    def kronecker(self, other: Structure, size: int) -> Structure:
        """Of A ⊗ B, for B with so many rows and columns."""

        def width(outer: float, inner: float) -> float:
            return outer * size + min(inner, size - 1) if outer < math.inf else math.inf

        return self.plus(other)._replace(lower=width(self.lower, other.lower), upper=width(self.upper, other.upper))
