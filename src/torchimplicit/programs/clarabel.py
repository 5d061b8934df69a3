"""Clarabel, which solves cone programs one by one."""

from __future__ import annotations

from importlib import import_module
from itertools import repeat
from typing import Any

import torch

from torchimplicit.programs.conic import ConePrograms
from torchimplicit.programs.outside import ENDED, ConeAnswers
from torchimplicit.status import Status

MISSING = "cone programs need Clarabel: pip install 'torchimplicit[cone]'."


class Clarabel:
    """The interior-point method Clarabel, for :func:`torchimplicit.cone_program`: the default.

    Args:
        options: of its settings: ``tol_feas=1e-9``, ``max_iter=500``, ...

    Raises:
        ImportError: Clarabel is not installed.
        TypeError: it has no such setting.

    Source: Goulart and Chen, Clarabel: an interior-point solver for conic programs with quadratic objectives, arXiv:2405.12762 (2024).
    """

    def __init__(self, **options: Any) -> None:
        settings = _package().DefaultSettings()
        for name in options:
            if not hasattr(settings, name):
                known = ", ".join(name for name in dir(settings) if not name.startswith("_"))
                raise TypeError(f"Clarabel has no setting {name!r}. It has {known}.")
        self.options = options

    def __repr__(self) -> str:
        return f"Clarabel({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def cone_programs(self, programs: ConePrograms, max_steps: int | None) -> ConeAnswers:
        """One call for each program."""
        package = _package()
        settings = package.DefaultSettings()
        settings.verbose = False
        limit = {} if max_steps is None else {"max_iter": max_steps}
        for name, value in {**self.options, **limit}.items():
            setattr(settings, name, value)
        kinds = {
            "zero": package.ZeroConeT,
            "nonnegative": package.NonnegativeConeT,
            "second_order": package.SecondOrderConeT,
            "exponential": lambda size: package.ExponentialConeT(),
        }
        cones = []
        for kind, _, count, size in programs.cones.blocks:
            if kind in ("zero", "nonnegative"):
                cones.append(kinds[kind](count))
            elif kind == "positive_semidefinite":
                order = round((2 * size + 0.25) ** 0.5 - 0.5)
                cones += [package.PSDTriangleConeT(order) for _ in range(count)]
            else:
                cones += [kinds[kind](size) for _ in range(count)]
        q, b = programs.q.cpu().numpy(), programs.b.cpu().numpy()
        z, y = torch.zeros_like(programs.q), torch.zeros_like(programs.b)
        status = torch.full((len(q),), int(Status.STAGNATED), device=z.device)
        steps = torch.zeros_like(status)
        Ps = repeat(_empty(q.shape[-1])) if programs.P is None else programs.P.arrays(upper=True)
        for i, (P, A) in enumerate(zip(Ps, programs.A.arrays())):
            found = package.DefaultSolver(P, q[i], A, b[i], cones, settings).solve()
            z[i], y[i] = torch.tensor(found.x).to(z), torch.tensor(found.z).to(y)
            status[i], steps[i] = int(ENDED.get(str(found.status), Status.STAGNATED)), found.iterations
        return ConeAnswers(z, y, status, steps)


def _empty(n: int) -> Any:
    from scipy.sparse import csc_matrix

    return csc_matrix((n, n))


def _package() -> Any:
    try:
        return import_module("clarabel")
    except ImportError as error:
        raise ImportError(MISSING) from error
