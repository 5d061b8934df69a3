"""A method of SciPy as the forward solver."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from torchimplicit.parameters import check_positive
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.method import Method

T = TypeVar("T")

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


class SciPy(Method):
    """The method of ``scipy.optimize`` of that name, with the exact derivatives where it takes any.

    One step is one call of SciPy for every system, one after the other; where its result does not meet the tolerance of the call, the
    next step starts from there. ``tol`` is SciPy's own tolerance, and ``options`` go to the function that has the method:
    ``root_scalar`` (options such as ``bracket=(0, 1)``) and ``root`` for equations, ``least_squares`` for fits, ``minimize`` for minima
    and fits. The gradient is that of the condition, as with any solver; steps cannot be unrolled.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: no method has this name, or none for this kind of problem.
        TypeError, ValueError: SciPy's function does not take the options; the message says which function, and what it was given.

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
        return self._call("root", row, row.residual, start, tol=self.tol, **jacobian).x

    def _root_scalar(self, row: _Row, start: Any) -> Any:
        if len(start) != 1:
            raise ValueError(f"SciPy's {self.method} finds roots of one unknown; here are {len(start)}.")
        slope = {"fprime": lambda z: float(row.jacobian([z])[0, 0])} if self.method == "newton" else {}
        one = {"x0": start[0], "xtol": self.tol, **slope}
        return [self._call("root_scalar", row, lambda z: float(row.residual([z])[0]), **one).root]

    def _minimize(self, row: _Row, start: Any) -> Any:
        told: dict[str, Any] = {} if self.method in WITHOUT_GRADIENT else {"jac": row.gradient}
        if self.method in WITH_HESSIAN:
            told["hess"] = row.hessian
        if row.equations.kind.bounded:
            told["bounds"] = list(zip(*row.bounds(start), strict=True))
        return self._call("minimize", row, row.objective, start, tol=self.tol, **told).x

    def _least_squares(self, row: _Row, start: Any) -> Any:
        told: dict[str, Any] = dict.fromkeys(("ftol", "xtol", "gtol"), self.tol)
        if row.equations.kind.bounded:
            told["bounds"] = row.bounds(start)
        return self._call("least_squares", row, row.squares, start, jac=row.jacobian_of_squares, **told).x

    def _call(self, function: str, row: _Row, *args: Any, **told: Any) -> Any:
        """That function of SciPy, of which an error says what it was given; the errors of the user's function go through."""
        try:
            return getattr(_scipy(), function)(*args, method=self.method, **{**told, **self.options})
        except (TypeError, ValueError) as error:
            if error is row.raised:
                raise
            further = " Options of the method itself go in options={...}." if function in ("minimize", "root") else ""
            raise (TypeError if isinstance(error, TypeError) else ValueError)(
                f"scipy.optimize.{function} does not take what {self!r} passes on (method={self.method!r}, "
                f"{', '.join(sorted({**told, **self.options}))}): {error}.{further}"
            ) from error


class _Row:
    """One system of a batch as functions of arrays, the others where they are."""

    def __init__(self, equations: Equations, z: Tensor, i: int) -> None:
        self.equations, self.z, self.i = equations, z, i
        self.raised: Exception | None = None  # by the user's function

    def _at(self, x: Any) -> Tensor:
        z = self.z.clone()
        z[self.i] = torch.as_tensor(x, dtype=torch.float64).to(z)
        return z

    def _array(self, rows: Tensor) -> Any:
        return rows[self.i].double().cpu().numpy()

    def _asked(self, question: Callable[[Tensor], T], x: Any) -> T:
        try:
            return question(self._at(x))
        except Exception as error:
            self.raised = error
            raise

    def residual(self, x: Any) -> Any:
        return self._array(self._asked(self.equations.residual, x))

    def jacobian(self, x: Any) -> Any:
        return self._array(self._asked(self.equations.jacobian, x).to_dense())

    def gradient(self, x: Any) -> Any:
        return self._array(self._asked(self.equations.objective_and_jacobian, x)[1].value)

    def hessian(self, x: Any) -> Any:
        return self._array(self._asked(self.equations.objective_and_jacobian, x)[1].to_dense())

    def bounds(self, x: Any) -> tuple[Any, Any]:
        lower, upper = self._asked(self.equations.bounds, x)
        return self._array(lower), self._array(upper)

    def squares(self, x: Any) -> Any:
        return self._array(self._asked(self.equations.squares, x))

    def jacobian_of_squares(self, x: Any) -> Any:
        return self._array(self._asked(self.equations.jacobian_of_squares, x).to_dense())

    def objective(self, x: Any) -> float:
        return float(self._asked(self.equations.objective, x)[self.i])


def _scipy() -> Any:
    try:
        return import_module("scipy.optimize")
    except ImportError as error:
        raise ImportError("interop.SciPy needs SciPy: pip install scipy.") from error
