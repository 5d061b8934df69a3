"""Banded matrices factorised by LAPACK, by way of SciPy."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchimplicit.autograd.transforms import finished, values_hidden
from torchimplicit.linear.estimated import Estimated
from torchimplicit.linear.external import applied
from torchimplicit.linear.vectors import fit
from torchimplicit.norms import inverse_power_of_two


def available(*entries: Tensor) -> bool:
    """Whether LAPACK can be asked: for plain numbers on the CPU, of which nothing is recorded, where SciPy is."""
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in entries)
    here = all(t.device.type == "cpu" for t in entries) and find_spec("scipy") is not None
    return here and not recorded and not values_hidden()


class BandLU(Estimated):
    """Gaussian elimination with partial pivoting within the bands (gttrf for tridiagonal matrices, else gbtrf), or, of real tridiagonal
    matrices that are said to be symmetric and ``definite``, and are positive definite, without pivoting (pttrf), in half of the time.

    The matrices of a batch are factorised as one long matrix, in which nothing couples one to the next. One that has no factors
    solves to NaN.

    bands : (*batch_shape, lower + upper + 1, n), in which what is outside the matrix is not read.
    """

    title, final = "band LU", True
    _back: Callable[[Any, bool], tuple[Any, int]]  # (columns, whether those of Aᴴ) -> what they solve to

    def __init__(self, bands: Tensor, lower: int, upper: int, definite: bool = False) -> None:
        self.lower, self.upper, self.definite = lower, upper, definite and not bands.is_complex()
        self.batch_shape, self.n = bands.shape[:-2], bands.shape[-1]
        each = bands.detach().reshape(-1, *bands.shape[-2:]).clone()
        for k in range(-lower, upper + 1):
            each[:, upper - k, : max(k, 0)] = 0
            each[:, upper - k, max(self.n + min(k, 0), 0) :] = 0
        self.usable = each.sum((1, 2)).isfinite()
        if not finished(self.usable):  # or only their sum
            self.usable = each.abs().amax((1, 2)) < torch.inf
            each[~self.usable] = 0
            each[~self.usable, upper] = 1
        pivots = self._factorise(each.movedim(0, 1).flatten(1).resolve_conj().numpy())
        vanishing = torch.from_numpy(abs(pivots) < torch.finfo(bands.dtype).tiny).reshape(-1, self.n)
        found = torch.from_numpy(pivots.copy()).reshape(bands.shape[:-2] + bands.shape[-1:])
        super().__init__(bands.dtype, lambda: _units(each.reshape(bands.shape), lower, upper), found)
        if not finished(~vanishing):
            pivots[vanishing.flatten().numpy()] = 1  # infinite numbers would reach the next matrix
            self.usable = self.usable & ~vanishing.any(1)
        self.all_usable = finished(self.usable)

    def _factorise(self, bands: Any) -> Any:
        """The factors of the joined matrices (lower + upper + 1, k n); returns their pivots."""
        from scipy.linalg import get_lapack_funcs

        if self.lower == self.upper == 1 and bands.shape[-1] > 2:
            if self.definite:
                factor, of_definite = get_lapack_funcs(("pttrf", "pttrs"), (bands,))
                pivots, e, failed = factor(bands[1], bands[2, :-1])
                if not failed:
                    self.title = "band LDLᵀ"
                    self._back = lambda b, adjoint: of_definite(pivots, e, b)
                    return pivots
            factor, back = get_lapack_funcs(("gttrf", "gttrs"), (bands,))
            *factors, _ = factor(bands[2, :-1], bands[1], bands[0, 1:])
            self._back = lambda b, adjoint: back(*factors, b, trans="NC"[adjoint])
            return factors[1]
        factor, back = get_lapack_funcs(("gbtrf", "gbtrs"), (bands,))
        room = pad(torch.from_numpy(bands), (0, 0, self.lower, 0)).numpy()  # for what pivoting fills in
        lu, order, _ = factor(room, self.lower, self.upper)
        self._back = lambda b, adjoint: back(lu, self.lower, self.upper, b, order, trans=(0, 2)[adjoint])
        return lu[self.lower + self.upper]

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """x with A x = b, or Aᴴ x = b: (*lead, *batch_shape, n). Differentiable in b."""
        return applied(self._solve, fit(b, self.batch_shape, self.n, self.dtype, name="b"), adjoint)

    def _solve(self, b: Tensor, adjoint: bool) -> Tensor:
        if not b.numel():
            return b.clone()
        columns = b.resolve_conj().reshape(-1, len(self.usable), self.n)
        usable = None
        if not (self.all_usable and len(self.usable) == 1):  # what is not finite would reach the next matrix
            usable = self.usable.unsqueeze(-1) & columns.isfinite().all(-1, keepdim=True)
            columns = torch.where(usable, columns, 0)
        x, _ = self._back(columns.flatten(1).numpy().T, adjoint)
        found = torch.from_numpy(x.T).reshape(columns.shape)
        return (found if usable is None else torch.where(usable, found, torch.nan)).reshape(b.shape)


def _units(bands: Tensor, lower: int, upper: int) -> tuple[Tensor, Tensor]:
    """The powers of two that scale the rows and then the columns to largest entries of size one."""
    n, size = bands.shape[-1], bands.abs()
    rows = torch.stack([_moved(size[..., upper - k, :], k) for k in range(-lower, upper + 1)]) if n else size[..., 0, :]
    d = inverse_power_of_two(rows.amax(0) if n else rows)
    scaled = torch.stack([size[..., upper - k, :] * _moved(d, -k) for k in range(-lower, upper + 1)]) if n else rows
    return d, inverse_power_of_two(scaled.amax(0) if n else scaled)


def _moved(v: Tensor, k: int) -> Tensor:
    """v[j + k] in place j, zeros where there is none."""
    n = v.shape[-1]
    if abs(k) >= n:
        return torch.zeros_like(v)
    return pad(v[..., k:], (0, k)) if k >= 0 else pad(v[..., :k], (-k, 0))
