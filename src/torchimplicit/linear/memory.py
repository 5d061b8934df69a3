"""What is learnt of a sequence of similar matrices, the Jacobians of a solve and of its backward: a pattern, and an inverse of one."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.amg import multigrid_of
from torchimplicit.linear.pattern import Pattern
from torchimplicit.linear.sparse import NARROW, Sparse
from torchimplicit.linear.superlu import SuperLU
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.sparsity.assembly import Assembly
from torchimplicit.sparsity.detection import NoPattern, detect
from torchimplicit.sparsity.extra import MISSING, available
from torchimplicit.sparsity.patterns import given

DENSE = 0.25  # part of its places that has entries in a matrix that is not sparse
WIDE = 700  # unknowns that separate the rest, up to which factors are cheap: their cube counts
LEFT_OUT = 0.25  # power of eps: relative size of what a product shows to be missing from the entries


class PatternWarning(UserWarning):
    """The Jacobian has entries outside of the pattern that was given."""


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
        self._given = None if isinstance(sparsity, str) else sparsity
        self._assembly: Assembly | None = None
        self._looked = False
        self._setup_failed = ""
        self.why_not = ""
        self.setups = 0
        self.inverse: Any = None
        self._of: Any = None  # batch size, dtype and device of what it is the inverse of
        self.stale = False  # the inverse is of a matrix too far away
        self.sign: int | None = None  # of definite matrices 1 or −1, of others 0; None: not known
        self.used = ""

    def __repr__(self) -> str:
        return f"Memory({self.description or 'nothing yet'})"

    @property
    def description(self) -> str:
        """How the systems were solved last, in words; empty where none was."""
        if not self.used:
            return ""
        parts = [self.used]
        if self._assembly is not None:
            source = "found" if self._given is None else "given"
            parts.append(f"pattern {source}: {len(self._assembly.pattern.rows)} entries")
        parts += [why for why in (self.why_not, self._setup_failed) if why]
        return "; ".join(part for part in parts if part)

    def serves(self, b: Tensor) -> bool:
        """Whether the inverse may precondition systems with right-hand sides b (*lead, B, n): those that it is of, or so many times as
        many, as vmap makes of them."""
        if self.inverse is None or self.stale:
            return False
        systems, *kind = self._of
        return b.shape[-2] % systems == 0 and kind == [b.dtype, b.device]

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """What the inverse makes of b, or its adjoint."""
        systems = self._of[0]
        x: Tensor
        if b.shape[-2] == systems:
            x = self.inverse.solve(b, adjoint)
            return x
        x = self.inverse.solve(b.unflatten(-2, (-1, systems)), adjoint)
        return x.flatten(-3, -2)

    def check(self, n: int) -> None:
        """Raise unless a pattern that was given, or found before, fits n unknowns, and what it needs is installed."""
        if self._assembly is not None and self._assembly.pattern.n != n:
            raise ValueError(
                f"sparsity is a Memory of systems with {self._assembly.pattern.n} unknowns; these have {n}. Take another one."
            )
        if not available():
            raise ImportError(MISSING)
        if self._given is not None:
            self._assembly, self._looked = Assembly(given(self._given, n)), True

    def of_rows(self) -> Memory:
        """That of some of the systems, with the same pattern and nothing else."""
        other = Memory("detect" if self._given is None else self._given)
        other._assembly, other._looked, other.why_not = self._assembly, self._looked, self.why_not
        return other

    def pattern(self, operator: Any) -> Pattern | None:
        """The pattern of the operator, a Jacobian; None where there is none."""
        if not self._looked:
            self._looked = True
            self._look(operator)
        return None if self._assembly is None else self._assembly.pattern

    def _look(self, operator: Any) -> None:
        if not available():
            self.why_not = MISSING
            return
        n = operator.shape[-1]
        if self._given is not None:
            self._assembly = Assembly(given(self._given, n))
            return
        try:
            pattern = detect(operator.g, operator.z)
        except NoPattern as error:
            self.why_not = f"no pattern found: {error}"
        except Exception as error:  # what a function does not bear under a dispatch mode
            self.why_not = f"no pattern found: {type(error).__name__}: {error}"
        else:
            if len(pattern.rows) > DENSE * n * n:
                self.why_not = "the Jacobian is not sparse"
            else:
                self._assembly = Assembly(pattern)

    @property
    def banded(self) -> bool:
        """Whether all entries are near the diagonal."""
        return self._assembly is not None and sum(self._assembly.pattern.bandwidths) < NARROW

    @property
    def cheap(self) -> bool:
        """Whether factors of these matrices cost little: they have a narrow band, or are those of a mesh in the plane."""
        return self._assembly is not None and (self.banded or self._assembly.pattern.width <= WIDE)

    def assembled(self, operator: Any) -> Sparse:
        """The operator's entries. Raises TypeError where no pattern is known."""
        if self.pattern(operator) is None or self._assembly is None:
            raise TypeError(f"a sparse matrix is asked for, and there is none: {self.why_not}.")
        with torch.no_grad():
            values = self._assembly.values(operator, operator.z.detach())
            return Sparse(values.detach(), self._assembly.pattern)

    def learn(self, operator: Any) -> None:
        """Make an inverse of the operator, or note why there is none."""
        self.inverse, self.stale = None, False
        if self._setup_failed or self.pattern(operator) is None:
            return
        matrix = self.assembled(operator)
        if not (bool(matrix.values.isfinite().all()) and self._complete(operator, matrix)):
            return
        self.setups += 1
        self.inverse, self._of = self._inverse_of(matrix), (len(matrix.values), matrix.dtype, matrix.device)
        if self.inverse is None:
            self._setup_failed = "no preconditioner: factors would be large, and PyAMG is not installed"

    def _inverse_of(self, matrix: Sparse) -> Any:
        """With ``title`` and ``solve``; None where there is none that pays."""
        if self.banded:
            return matrix.direct()
        if self.cheap:
            return SuperLU(matrix.values, matrix.pattern)
        return multigrid_of(matrix)

    def _complete(self, operator: Any, matrix: Sparse) -> bool:
        """Whether one product with the true Jacobian finds nothing that the entries lack; where it does, there are none from now on."""
        with torch.no_grad():
            x = unpatterned(operator.z).contiguous()
            true, seen = operator.matvec(x), matrix.matvec(x)
            off = (true - seen).abs()
            size = true.abs().amax() + seen.abs().amax()
            if bool(off.amax() <= torch.finfo(x.dtype).eps ** LEFT_OUT * size):
                return True
            system, row = divmod(int(off.argmax()), off.shape[-1])
        self._assembly = None
        if self._given is None:
            self.why_not = f"no pattern found: a product shows entries that detection has missed, in row {row}"
            return False
        self.why_not = f"the pattern that was given is wrong: the Jacobian has entries outside of it, in row {row}"
        warnings.warn(
            f"sparsity: {self.why_not}"
            + (f" of system {system}" if len(off) > 1 else "")
            + ". The solve goes on without it. Pass sparsity='detect', or a pattern with all entries.",
            PatternWarning,
            stacklevel=2,
        )
        return False
