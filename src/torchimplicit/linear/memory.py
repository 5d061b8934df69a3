"""What is learnt of a sequence of similar matrices, the Jacobians of a solve and of its backward: a pattern, and an inverse of one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from torchimplicit.linear.bands import Banded
from torchimplicit.linear.best_factors import best_factors
from torchimplicit.linear.multigrid import multigrid_of
from torchimplicit.linear.operators import LinearOperator
from torchimplicit.linear.pattern import NARROW, FullBand, Pattern
from torchimplicit.linear.solver import Preconditioner
from torchimplicit.linear.sparse import Sparse
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.sparsity.assembly import Assembly, Products, bands_of
from torchimplicit.sparsity.construction import given, with_diagonal
from torchimplicit.sparsity.detection import NoPattern, detect
from torchimplicit.sparsity.extra import MISSING, available

DENSE = 0.25  # part of its places that has entries in a matrix that is not sparse
WIDE = 700  # unknowns that separate the rest, up to which factors are cheap: their cube counts
WITHOUT = "Without one there are linear.LU(), linear.Cholesky(), and as preconditioners linear.Diagonal(d) or a callable r -> M r."
LEFT_OUT = 0.25  # power of eps: relative size of what a product shows to be missing from the entries


class PatternWarning(UserWarning):
    """The Jacobian has entries outside of the pattern that was given."""


class Linearised(Products, Protocol):
    """A Jacobian, and of what function at what point."""

    g: Callable[[Tensor], Tensor]
    z: Tensor


class Inverse(Preconditioner, Protocol):
    """What preconditions systems with matrices like the one that it was made of."""

    @property
    def title(self) -> str: ...


@dataclass
class _Shared:
    """What a memory and its forks know together: the pattern that was given, or found, with its colours, or why there is none; whether
    a product has confirmed it."""

    given: Any
    assembly: Assembly | None = None
    looked: bool = False
    confirmed: bool = False
    why_not: str = ""
    elsewhere: str = ""
    setup_failed: str = ""
    setups: int = 0
    used: str = ""


class Memory:
    """What is known of the Jacobians of a problem. Keep one, as ``sparsity=``, and the next call starts with what this one has learnt:
    the pattern, its colours, and the factors of an earlier Jacobian, as long as they serve.

    Args:
        sparsity: "detect": the pattern is found from the function, when it is needed; or a pattern: a sparse tensor of torch, a sparse
            array of SciPy, or a list of the lengths of diagonal blocks, of the unknowns of one system.

    What it holds makes a solve faster and never changes what counts as solved: that is decided by products with the true Jacobian.

    Attributes:
        setups: how many matrices were factorised (or given a multigrid hierarchy) so far.
    """

    def __init__(self, sparsity: Any = "detect") -> None:
        if isinstance(sparsity, str) and sparsity != "detect":
            raise ValueError(f"sparsity must be 'detect', 'off', a pattern or a Memory; got {sparsity!r}.")
        self._shared = _Shared(None if isinstance(sparsity, str) else sparsity)
        self.inverse: Inverse | None = None
        self._of: tuple[int, torch.dtype, torch.device] | None = (
            None  # batch size, dtype and device of what it is the inverse of
        )
        self.stale = False  # the inverse is of a matrix too far away
        self.slow = False  # products alone have not been enough
        self.refused = 0  # solutions in turn that were of no use, for the matrix was indefinite, say
        self.sign: int | None = None  # of definite matrices 1 or −1, of others 0; None: not known
        self.masked = False  # whether that is the sign of those of free unknowns, of which the whole ones need not even be symmetric

    def fork(self) -> Memory:
        """The same inverse, and the same pattern and counts for both. What one learns of inverses from now on the other does not know:
        a backward that runs twice gives the same numbers."""
        return copy(self)

    @property
    def setups(self) -> int:
        """How many inverses were made."""
        return self._shared.setups

    def doubt(self) -> None:
        """Whether the matrices are symmetric and definite has to be seen anew: they were, and may have changed."""
        self.sign = None

    def note(self, used: str) -> None:
        """Take note of how a system was solved."""
        self._shared.used = used

    def __repr__(self) -> str:
        return f"Memory({self.description or 'nothing yet'})"

    @property
    def description(self) -> str:
        """How the systems were solved last, in words; empty where none was."""
        if not self._shared.used:
            return ""
        parts = [self._shared.used]
        if self._shared.assembly is not None and not self._shared.elsewhere:
            source = "found" if self._shared.given is None else "given"
            parts.append(f"pattern {source}: {self._shared.assembly.pattern.entries} entries")
        parts += [why for why in (self.why_not, self._shared.setup_failed) if why]
        return "; ".join(part for part in parts if part)

    def serves(self, b: Tensor) -> bool:
        """Whether the inverse may precondition systems with right-hand sides b (*lead, B, n): those that it is of, or so many times as
        many, as vmap makes of them."""
        if self._of is None or self.stale:
            return False
        systems, *kind = self._of
        return b.shape[-2] % systems == 0 and kind == [b.dtype, b.device]

    @property
    def title(self) -> str:
        """What the inverse is called."""
        return "nothing" if self.inverse is None else self.inverse.title

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """What the inverse makes of b, or its adjoint."""
        assert self.inverse is not None
        assert self._of is not None
        systems = self._of[0]
        if b.shape[-2] == systems:
            return self.inverse.solve(b, adjoint)
        return self.inverse.solve(b.unflatten(-2, (-1, systems)), adjoint).flatten(-3, -2)

    def check(self, n: int) -> None:
        """Raise unless a pattern that was given, or found before, fits n unknowns, and what it needs is installed."""
        if self._shared.assembly is not None and self._shared.assembly.pattern.n != n:
            raise ValueError(
                f"sparsity is a Memory of systems with {self._shared.assembly.pattern.n} unknowns; these have {n}. Take another one."
            )
        if not available():
            raise ImportError(MISSING)
        if self._shared.given is not None and not self._shared.looked:
            self._take(n)

    def _take(self, n: int) -> None:
        """The pattern that was given, once: it keeps its colours, and one that was found wrong stays out."""
        self._shared.assembly, self._shared.looked = Assembly(with_diagonal(given(self._shared.given, n))), True

    def of_rows(self) -> Memory:
        """That of some of the systems, with the same pattern and nothing else."""
        other = Memory()
        other._shared = self._shared
        return other

    def pattern(self, operator: Linearised, find: Callable[[], Pattern] | None = None) -> Pattern | None:
        """The pattern of the operator, a Jacobian; None where there is none. ``find`` : what finds it, if its function alone does not
        tell."""
        device = operator.z.device
        self._shared.elsewhere = "" if device.type == "cpu" else f"SciPy factorises on the CPU, and this is on {device}"
        if self._shared.elsewhere:  # though there may be one, given, or of calls on the CPU
            return None
        if not self._shared.looked:
            self._shared.looked = True
            self._look(operator, find)
        return None if self._shared.assembly is None else self._shared.assembly.pattern

    def _look(self, operator: Linearised, find: Callable[[], Pattern] | None) -> None:
        if not available():
            self._shared.why_not = MISSING
            return
        if self._shared.given is not None:
            self._take(operator.z.shape[-1])
            return
        try:
            pattern = detect(operator.g, operator.z) if find is None else find()
        except NoPattern as error:
            self._shared.why_not = f"no pattern found: {error}"
        except Exception as error:  # what a function does not bear under a dispatch mode
            self._shared.why_not = f"no pattern found: {type(error).__name__}: {error}"
        else:
            if pattern.entries > DENSE * operator.z.shape[-1] ** 2:
                self._shared.why_not = "the Jacobian is not sparse"
            else:
                self._shared.assembly = Assembly(with_diagonal(pattern))

    @property
    def why_not(self) -> str:
        """Why there is no pattern; empty where there is one, or nobody has looked."""
        return self._shared.elsewhere or self._shared.why_not

    @property
    def banded(self) -> bool:
        """Whether all entries are near the diagonal."""
        return self._shared.assembly is not None and sum(self._shared.assembly.pattern.bandwidths) < NARROW

    @property
    def full_band(self) -> FullBand | None:
        """The pattern, if it is that of a narrow band without holes."""
        pattern = None if self._shared.assembly is None else self._shared.assembly.pattern
        return pattern if isinstance(pattern, FullBand) else None

    @property
    def chain(self) -> bool:
        """Whether they are in the blocks of a sequence along it, which are no narrow band."""
        return self._shared.assembly is not None and not self.banded and self._shared.assembly.pattern.chain > 0

    @property
    def colours(self) -> int:
        """How many products it takes to assemble one of these matrices; 0 where no pattern is known."""
        return 0 if self._shared.assembly is None else self._shared.assembly.colours

    @property
    def cheap(self) -> bool:
        """Whether factors of these matrices cost little: they have a narrow band, or are those of a mesh in the plane."""
        if self._shared.assembly is None:
            return False
        pattern = self._shared.assembly.pattern
        return max(pattern.bandwidths) <= WIDE or pattern.width <= WIDE  # the second takes as long as many products

    def assembled(self, operator: Linearised, wanted_by: str) -> Sparse:
        """The operator's entries. Raises TypeError where no pattern is known."""
        if self.pattern(operator) is None or self._shared.assembly is None:
            raise TypeError(
                f"{wanted_by} needs the entries of a sparse matrix, and there is none: {self.why_not}. {WITHOUT}"
            )
        with torch.no_grad():
            values = self._shared.assembly.values(operator, operator.z.detach())
            return Sparse(values.detach(), self._shared.assembly.pattern)

    def entries(self, operator: Linearised) -> Sparse | None:
        """The same, or None where they are not finite, or one product shows that there are others."""
        matrix = self.assembled(operator, "the solve")
        return matrix if _finite(matrix.values) and self.complete(operator, matrix) else None

    def factorisable(self, operator: Linearised) -> Sparse | Banded | None:
        """The same, as what factors are made of. Of a pattern that was found these tell by how fast they solve whether there are more
        entries; see :meth:`complete`."""
        band = self.full_band
        matrix: Sparse | Banded
        if band is None:
            matrix = self.assembled(operator, "the solve")
            values = matrix.values
        else:
            with torch.no_grad():
                values = bands_of(band, operator, operator.z.detach())
            matrix = Banded(values, *band.bandwidths)
        if not _finite(values):
            return None
        return matrix if self._shared.given is None or self.complete(operator, matrix) else None

    def learn(self, matrix: Sparse | Banded | None) -> None:
        """Make an inverse of the matrix, or note why there is none."""
        self.inverse, self._of, self.stale = None, None, False
        if matrix is None or self._shared.setup_failed:
            return
        self._shared.setups += 1
        self.inverse = self._inverse_of(matrix)
        if self.inverse is not None:
            self._of = matrix.batch_shape[0], matrix.dtype, matrix.device
        else:
            self._shared.setup_failed = "no preconditioner: factors would be large, and PyAMG is not installed"

    def _inverse_of(self, matrix: Sparse | Banded) -> Inverse | None:
        """None where there is none that pays."""
        if (
            isinstance(matrix, Banded) and self.sign == 1 and not self.masked
        ):  # as far as is known; if not, the solve tells
            matrix = Banded(matrix.bands, matrix.lower, matrix.upper, symmetric=True, positive_definite=True)
        if isinstance(matrix, Banded) or self.banded or self.chain:
            return matrix.direct()
        if self.cheap:
            return best_factors(matrix.values, matrix.pattern, None if self.masked else self.sign)
        return multigrid_of(matrix)

    @property
    def confirmed(self) -> bool:
        """Whether a product has found no other entries than those of the pattern."""
        return self._shared.confirmed

    def confirm(self) -> None:
        """One has."""
        self._shared.confirmed = True

    def complete(self, operator: Linearised, matrix: LinearOperator) -> bool:
        """Whether one product with the true Jacobian finds nothing that the entries lack; where it does, there are none from now on."""
        with torch.no_grad():
            x = unpatterned(operator.z).contiguous()
            banded = isinstance(matrix, Banded)
            seen = matrix.rmatvec(x) if banded else matrix.matvec(x)
            true = operator.rmatvec(x) if banded or self.sign else operator.matvec(x)  # the same, at half the cost
            if self.sign and not banded and not _near(true, seen):  # no longer, perhaps
                self.sign, true = 0, operator.matvec(x)
            if _near(true, seen):
                self.confirm()
                return True
            off = (true - seen).abs()
            system, line = divmod(int(off.argmax()), off.shape[-1])
            where = f"in {'column' if banded else 'row'} {line}"
        self._shared.assembly = None
        if self._shared.given is None:
            self._shared.why_not = f"no pattern found: a product shows entries that detection has missed, {where}"
            return False
        self._shared.why_not = f"the pattern that was given is wrong: the Jacobian has entries outside of it, {where}"
        warnings.warn(
            f"sparsity: {self._shared.why_not}"
            + (f" of system {system}" if len(off) > 1 else "")
            + ". The solve goes on without it. Pass sparsity='detect', or a pattern with all entries.",
            PatternWarning,
            stacklevel=2,
        )
        return False


def _near(true: Tensor, seen: Tensor) -> bool:
    """Whether one product is the other, but for rounding, and what no entry of a matrix would be so small as to change."""
    size = true.abs().amax() + seen.abs().amax()
    return bool((true - seen).abs().amax() <= torch.finfo(true.dtype).eps ** LEFT_OUT * size)


def _finite(values: Tensor) -> bool:
    """Whether all of them are finite, in a fraction of the time of ``isfinite().all()``: as their sum tells, unless it overflows."""
    return bool(values.sum().isfinite()) or bool(values.abs().amax() < torch.inf)
