"""Moreau, which solves batches of cone programs at once."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.pattern import Pattern
from torchimplicit.programs.conic import ConePrograms
from torchimplicit.programs.matrix import Matrix
from torchimplicit.programs.outside import ENDED, ConeAnswers
from torchimplicit.status import Status

MISSING = "interop.Moreau needs Moreau: pip install 'torchimplicit[moreau]'."


class Moreau:
    """The interior-point method Moreau, for :func:`torchimplicit.cone_program`: all programs of a batch in one call.

    Args:
        settings: those of ``moreau.Settings`` but for the size of the batch: ``device="cuda"``, ``ipm_settings=...``, ...

    Raises:
        ImportError: Moreau is not installed.
        TypeError: it has no such setting.
    """

    def __init__(self, **settings: Any) -> None:
        known = sorted(set(_package().Settings.model_fields) - {"batch_size"})
        for name in settings:
            if name not in known:
                raise TypeError(f"Moreau has no setting {name!r}. It has {', '.join(known)}.")
        self.settings = settings

    def __repr__(self) -> str:
        return f"Moreau({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"

    def cone_programs(self, programs: ConePrograms, max_steps: int | None) -> ConeAnswers:
        """One call for the whole batch."""
        package, cones = _package(), programs.cones
        B, (n, m) = len(programs.q), (programs.q.shape[-1], programs.b.shape[-1])
        limit = {} if max_steps is None else {"max_iter": max_steps}
        settings = package.Settings(**{"device": "cpu", **self.settings, **limit}, batch_size=B)
        product = package.Cones(
            num_zero_cones=cones.zero,
            num_nonneg_cones=cones.nonnegative,
            so_cone_dims=list(cones.second_order),
            psd_dims=list(cones.positive_semidefinite),
            num_exp_cones=cones.exponential,
        )
        P = programs.P
        P = Matrix(programs.q.new_zeros(B, 0), _nowhere(n)) if P is None else P.symmetrised()
        (starts_P, columns_P), (starts_A, columns_A) = _places(P), _places(programs.A)
        solver = package.CompiledSolver(n, m, starts_P, columns_P, starts_A, columns_A, product, settings)
        solver.setup(*(matrix.values.reshape(B, -1).cpu().numpy() for matrix in (P, programs.A)))
        found = solver.solve(programs.q.cpu().numpy(), programs.b.cpu().numpy())
        status = [int(ENDED.get(str(status), Status.STAGNATED)) for status in solver.info.status]
        like = programs.q
        z, y = (torch.as_tensor(part, dtype=like.dtype).to(like.device) for part in (found.x, found.z))
        steps = torch.as_tensor(solver.info.iterations, dtype=torch.int64).to(like.device)
        return ConeAnswers(z.clone(), y.clone(), torch.tensor(status, device=like.device), steps.clone())


def _nowhere(n: int) -> Pattern:
    none = torch.arange(0)
    return Pattern(none, none, n, n)


def _places(matrix: Matrix) -> tuple[Any, Any]:
    """Where the rows start, and the columns of the entries."""
    m, n = matrix.shape
    starts: Tensor = torch.arange(m + 1) * n
    columns: Tensor = torch.arange(n).repeat(m)
    if matrix.pattern is not None:
        starts, columns = matrix.pattern.starts, matrix.pattern.columns
    return starts.cpu().numpy(), columns.cpu().numpy()


def _package() -> Any:
    try:
        return import_module("moreau")
    except ImportError as error:
        raise ImportError(MISSING) from error
