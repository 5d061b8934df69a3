"""A method of SciPy as the forward solver."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.parameters import check_positive
from torchimplicit.solvers.equations import Equations

ROOT = (
    "hybr",
    "lm",
    "broyden1",
    "broyden2",
    "anderson",
    "linearmixing",
    "diagbroyden",
    "excitingmixing",
    "krylov",
    "df-sane",
)
SCALAR = ("bisect", "brentq", "brenth", "ridder", "toms748", "newton", "secant")
LEAST_SQUARES = ("trf", "dogbox", "lm")
WITH_HESSIAN = ("Newton-CG", "dogleg", "trust-ncg", "trust-krylov", "trust-exact", "trust-constr")
WITHOUT_GRADIENT = ("Nelder-Mead", "Powell", "COBYLA", "COBYQA")
MINIMUM = ("CG", "BFGS", "L-BFGS-B", "TNC", "SLSQP", *WITH_HESSIAN, *WITHOUT_GRADIENT)
WITH_BOUNDS = ("L-BFGS-B", "TNC", "SLSQP", "trust-constr", "Nelder-Mead", "Powell", "COBYLA", "COBYQA", "trf", "dogbox")


class SciPy:
    """The method of ``scipy.optimize`` of that name, with the exact derivatives where it takes any.

    One step is one call of SciPy for every system, one after the other; where its result does not meet the tolerance of the call, the
    next step starts from there. ``tol`` is SciPy's own tolerance, and ``options`` go to the function that has the method:
    ``root_scalar`` (options such as ``bracket=(0, 1)``) and ``root`` for equations, ``least_squares`` for fits, ``minimize`` for minima
    and fits. The gradient is that of the condition, as with any solver; steps cannot be unrolled.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: no method has this name, or none for this kind of problem.

    Example::

        z, info = ti.minimize(phi, z0, solver=ti.interop.SciPy("trust-constr"))
        z, info = ti.root(g, z0, solver=ti.interop.SciPy("brentq", bracket=(0.0, 1.0)))
    """

    max_steps: ClassVar[int] = 5
    patience: ClassVar[int] = 2

    def __init__(self, method: str, *, tol: float | None = 1e-12, **options: Any) -> None:
        known = {*ROOT, *SCALAR, *LEAST_SQUARES, *MINIMUM}
        if method not in known:
            raise ValueError(
                f"SciPy has no method {method!r} that is known here; the methods are {', '.join(sorted(known))}."
            )
        check_positive("SciPy: tol", tol)
        self.method, self.tol, self.options = method, tol, options

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"SciPy({self.method!r}, tol={self.tol!r}{options})"

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise TypeError("the steps of SciPy cannot be unrolled. Use Implicit() (the default).")
        self._solve(equations)
        return equations.residual(z), None

    def step(self, equations: Equations, z: Tensor, r: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        solve = self._solve(equations)
        z = z.clone()
        for i in range(len(z)):
            if bool(r[i].isfinite().all()):
                found = solve(_Row(equations, z, i), z[i].double().cpu().numpy())
                z[i] = torch.as_tensor(found, dtype=torch.float64).to(z)
        return z, equations.residual(z), None

    def _solve(self, equations: Equations) -> Callable[[_Row, Any], Any]:
        """The function of SciPy that has the method, for this kind of problem."""
        _scipy()  # whose absence is said before NumPy's
        minimised = equations.kind.minimised
        if equations.kind.bounded and self.method not in WITH_BOUNDS:
            raise ValueError(
                f"SciPy's {self.method} does not know of bounds. Methods that do: {', '.join(WITH_BOUNDS)}."
            )
        if minimised and self.method in LEAST_SQUARES:
            return self._least_squares
        if minimised and self.method in MINIMUM:
            return self._minimize
        if not minimised and self.method in ROOT:
            return self._root
        if not minimised and self.method in SCALAR:
            return self._root_scalar
        fitting = (*MINIMUM, *LEAST_SQUARES) if minimised else (*ROOT, *SCALAR)
        raise ValueError(
            f"SciPy's {self.method} does not find a {equations.kind.name}. Methods that do: {', '.join(fitting)}."
        )

    def _root(self, row: _Row, start: Any) -> Any:
        jacobian = {"jac": row.jacobian} if self.method in ("hybr", "lm") else {}
        return _scipy().root(row.residual, start, method=self.method, tol=self.tol, **jacobian, **self.options).x

    def _root_scalar(self, row: _Row, start: Any) -> Any:
        if len(start) != 1:
            raise ValueError(f"SciPy's {self.method} finds roots of one unknown; here are {len(start)}.")
        slope = {"fprime": lambda z: float(row.jacobian([z])[0, 0])} if self.method == "newton" else {}
        found = _scipy().root_scalar(
            lambda z: float(row.residual([z])[0]),
            method=self.method,
            x0=start[0],
            xtol=self.tol,
            **slope,
            **self.options,
        )
        return [found.root]

    def _minimize(self, row: _Row, start: Any) -> Any:
        told: dict[str, Any] = {} if self.method in WITHOUT_GRADIENT else {"jac": row.gradient}
        if self.method in WITH_HESSIAN:
            told["hess"] = row.hessian
        if row.equations.kind.bounded:
            told["bounds"] = list(zip(*row.bounds(start), strict=True))
        found = _scipy().minimize(row.objective, start, method=self.method, tol=self.tol, **told, **self.options)
        return found.x

    def _least_squares(self, row: _Row, start: Any) -> Any:
        options: dict[str, Any] = {**dict.fromkeys(("ftol", "xtol", "gtol"), self.tol), **self.options}
        if row.equations.kind.bounded:
            options["bounds"] = row.bounds(start)
        found = _scipy().least_squares(row.squares, start, jac=row.jacobian_of_squares, method=self.method, **options)
        return found.x


class _Row:
    """One system of a batch as functions of arrays, the others where they are."""

    def __init__(self, equations: Equations, z: Tensor, i: int) -> None:
        self.equations, self.z, self.i = equations, z, i

    def _at(self, x: Any) -> Tensor:
        z = self.z.clone()
        z[self.i] = torch.as_tensor(x, dtype=torch.float64).to(z)
        return z

    def _array(self, rows: Tensor) -> Any:
        return rows[self.i].double().cpu().numpy()

    def residual(self, x: Any) -> Any:
        return self._array(self.equations.residual(self._at(x)))

    def jacobian(self, x: Any) -> Any:
        return self._array(self.equations.jacobian(self._at(x)).to_dense())

    def gradient(self, x: Any) -> Any:
        return self._array(self.equations.objective_and_jacobian(self._at(x))[1].value)

    def hessian(self, x: Any) -> Any:
        return self._array(self.equations.objective_and_jacobian(self._at(x))[1].to_dense())

    def bounds(self, x: Any) -> tuple[Any, Any]:
        lower, upper = self.equations.bounds(self._at(x))
        return self._array(lower), self._array(upper)

    def squares(self, x: Any) -> Any:
        return self._array(self.equations.squares(self._at(x)))

    def jacobian_of_squares(self, x: Any) -> Any:
        return self._array(self.equations.jacobian_of_squares(self._at(x)).to_dense())

    def objective(self, x: Any) -> float:
        return float(self.equations.objective(self._at(x))[self.i])


def _scipy() -> Any:
    try:
        return import_module("scipy.optimize")
    except ImportError as error:
        raise ImportError("interop.SciPy needs SciPy: pip install scipy.") from error
