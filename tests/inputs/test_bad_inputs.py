"""What does not fit is refused with what was passed, what was expected and what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

Z = torch.zeros(3, dtype=torch.float64)


def same(z: Any, *args: Any) -> Any:
    return z


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a parameter of another library": (
        lambda: ti.solvers.Anderson(m=5),
        TypeError,
        "Anderson has no parameter 'm'.*memory, damping",
    ),
    "one of a linear solver": (lambda: ti.linear.GMRES(m=5), TypeError, "GMRES has no parameter 'm'.*restart"),
    "one of an adjoint": (lambda: ti.Phantom(k=5), TypeError, "Phantom has no parameter 'k'.*steps, damping"),
    "one of a line search": (
        lambda: ti.solvers.Backtracking(c1=1e-4),
        TypeError,
        "Backtracking has no parameter 'c1'.*are memory",
    ),
    "one of several methods in turn": (
        lambda: ti.solvers.Polyalgorithm(solvers=(ti.solvers.Newton(),)),
        TypeError,
        "Polyalgorithm has no parameter 'solvers'.*are stages",
    ),
    "a function without args": (
        lambda: ti.root(lambda z: z, Z, (Z,)),
        TypeError,
        r"takes 1 positional argument.*called as f\(z, \*args\)",
    ),
    "one within bounds": (
        lambda: ti.minimize(lambda z: z.sum(), Z, (Z,), bounds=(0, 1)),
        TypeError,
        r"takes 1 positional argument.*called as f\(z, \*args\)",
    ),
    "a constraint without args": (
        lambda: ti.minimize(
            lambda z, x: (z - x).square().sum(), Z, (Z,), constraints=ti.Constraints(at_most=lambda z: z.sum())
        ),
        TypeError,
        r"takes 1 positional argument.*called as at_most\(z, \*args\)",
    ),
    "a float32 start, float64 data": (
        lambda: ti.root(lambda z: torch.eye(3, dtype=torch.float64) @ z, Z.float()),
        RuntimeError,
        r"same dtype.*z0 is float32.*z0\.double\(\)",
    ),
    "integer z0": (lambda: ti.root(same, torch.zeros(3, dtype=torch.int64)), TypeError, "floating or complex.*int64"),
    "boolean z0": (lambda: ti.root(same, torch.zeros(3, dtype=torch.bool)), TypeError, "bool"),
    "a number as z0": (lambda: ti.root(same, 1.0), TypeError, r"float 1\.0.*torch\.tensor"),
    "an empty z0": (lambda: ti.root(same, ()), TypeError, "empty tuple"),
    "mixed dtypes": (lambda: ti.root(same, (Z, Z.float())), TypeError, "one dtype and one device.*float64.*float32"),
    "mixed devices": (lambda: ti.root(same, (Z, Z.to("meta"))), TypeError, "one dtype and one device.*meta"),
    "sparse z0": (lambda: ti.root(same, torch.eye(2).to_sparse()), TypeError, "to_dense"),
    "no function": (lambda: ti.root(Z, Z), TypeError, "function.*Tensor"),
    "args not a tuple": (lambda: ti.root(same, Z, Z), TypeError, r"args=\(x,\)"),
    "batch_ndim too large": (lambda: ti.root(same, Z, batch_ndim=2), ValueError, "only 1 dimensions"),
    "negative batch_ndim": (lambda: ti.root(same, Z, batch_ndim=-1), ValueError, "integer >= 0.*-1"),
    "leaves with other batches": (
        lambda: ti.root(same, (Z, torch.zeros(2, dtype=torch.float64)), batch_ndim=1),
        ValueError,
        r"share their first 1 dim.*\(3,\).*\(2,\)",
    ),
    "g of another shape": (lambda: ti.root(lambda z: z[:2], Z), ValueError, r"\(3,\).*returned.*\(2,\)"),
    "g of another structure": (lambda: ti.root(lambda z: (z, z), Z), TypeError, "must return what z is.*has_aux"),
    "g that returns nothing": (lambda: ti.root(lambda z: None, Z), TypeError, "returned NoneType"),
    "complex g of a real z": (lambda: ti.root(lambda z: z * 1j, Z), TypeError, "complex.*z is real"),
    "g on another device": (lambda: ti.root(lambda z: z.to("meta"), Z), ValueError, "meta.*z is on cpu"),
    "no aux": (lambda: ti.root(same, Z, has_aux=True), TypeError, r"\(value, aux\)"),
    "negative rtol": (lambda: ti.root(same, Z, rtol=-1.0), ValueError, r"rtol.*-1\.0"),
    "NaN atol": (lambda: ti.root(same, Z, atol=float("nan")), ValueError, "atol.*nan"),
    "wrong policy": (lambda: ti.root(same, Z, on_failure="die"), ValueError, "warn.*raise.*nan.*ignore.*die"),
    "wrong solver": (lambda: ti.root(same, Z, solver="newtn"), ValueError, "newtn.*newton"),
    "a solver class": (lambda: ti.root(same, Z, solver=ti.solvers.Newton), TypeError, r"Newton\(\)"),
    "an adjoint by name": (
        lambda: ti.root(same, Z, adjoint="phantom"),
        TypeError,
        r"SHINE\(\), .*Phantom\(\), .*'phantom'",
    ),
    "an adjoint class": (lambda: ti.root(same, Z, adjoint=ti.Implicit), TypeError, r"Implicit\(\)"),
    "a linear solver that is none": (lambda: ti.Implicit("lu"), TypeError, "factorize.*lu"),
    "max_steps": (lambda: ti.root(same, Z, max_steps=-2), ValueError, "max_steps.*-2"),
    "batched without a batch": (lambda: ti.root(same, Z, (Z,), batched=(True,)), ValueError, "batch_ndim is 0"),
    "batched of another structure": (
        lambda: ti.root(same, Z, (Z,), batch_ndim=1, batched=True),
        ValueError,
        "structure of args",
    ),
    "a vector to minimise": (lambda: ti.minimize(lambda z: z, Z), ValueError, "one number per system.*Sum"),
    "residuals without the batch": (
        lambda: ti.least_squares(lambda z: z.sum(), Z, batch_ndim=1),
        ValueError,
        r"batch dimensions \(3,\)",
    ),
    "z changed in place": (lambda: ti.root(lambda z: z.add_(1), Z, solver="picard"), RuntimeError, "in place.*clone"),
    "A that does not fit b": (lambda: ti.linear_solve(torch.eye(4), torch.ones(3)), ValueError, "3"),
    "A that is not square": (lambda: ti.linear_solve(torch.ones(3, 4), torch.ones(3)), ValueError, "4"),
    "an A that is not linear": (lambda: ti.linear_solve(lambda z: z**2 + z, Z + 1), ValueError, "not linear.*root"),
    "b that is no tensor": (lambda: ti.linear_solve(torch.eye(3), [1.0]), TypeError, "b must be a tensor"),
    "a solver that returns nothing": (lambda: ti.implicit(same)(lambda x: None)(Z), TypeError, "NoneType"),
    "unrolling a black box": (lambda: ti.implicit(same, adjoint=ti.Unrolled()), TypeError, "no steps to unroll"),
    "a function as a layer": (lambda: ti.nn.FixedPoint(same), TypeError, "nn.Module.*function"),
    "a layer without a start": (lambda: ti.nn.FixedPoint(torch.nn.Identity())(), TypeError, "z0=.*init="),
    "no steps to unroll": (lambda: ti.Unrolled(0), ValueError, "steps >= 1.*0"),
    "no phantom steps": (lambda: ti.Phantom(0), ValueError, "steps >= 1"),
    "no memory": (lambda: ti.solvers.Anderson(memory=0), ValueError, "memory >= 1"),
    "integers from g": (lambda: ti.root(lambda z: z > 0, Z), TypeError, "bool.*no derivative"),
    "integers from phi": (lambda: ti.minimize(lambda z: z.sum().long(), Z), TypeError, "int64.*no derivative"),
    "integers from r": (lambda: ti.least_squares(lambda z: z.long(), Z), TypeError, "int64.*no derivative"),
    "no numbers in z0": (lambda: ti.root(same, Z.to("meta")), TypeError, "meta device"),
    "an eighth precision": (lambda: ti.root(same, Z.to(torch.float8_e5m2)), TypeError, "float32.*float8"),
    "a callback that is none": (lambda: ti.root(same, Z, callback=3), TypeError, r"\(step, z, residual\).*int 3"),
    "NaN as the adjoint's rtol": (lambda: ti.Implicit(rtol=float("nan")), ValueError, "rtol.*nan"),
    "the adjoint's max_steps": (lambda: ti.Implicit(max_steps=-1), ValueError, "max_steps.*-1"),
    "a linear solver class": (lambda: ti.linear_solve(torch.eye(3), Z.float(), solver=ti.linear.CG), TypeError, "CG"),
    "a linear solver by name": (lambda: ti.Implicit("broyden"), TypeError, r"'broyden'.*GMRES\(\), .*LU\(\)"),
    "an unknown parameter": (
        lambda: ti.Phantom(grad=1, tau=0.8),
        TypeError,
        "'grad'; its parameters are steps, damping",
    ),
    "the class in the adjoint": (lambda: ti.Implicit(ti.linear.GMRES), TypeError, "Call the class"),
    "A elsewhere": (lambda: ti.linear_solve(torch.eye(3, device="meta"), Z.float()), ValueError, "A is on meta.*cpu"),
    "half b": (lambda: ti.linear_solve(torch.eye(3).half(), Z.half()), TypeError, "float32"),
    "a decorated number": (lambda: ti.implicit(same)(3), TypeError, "solver must be a function"),
    "a black box's adjoint class": (lambda: ti.implicit(same, adjoint=ti.Implicit), TypeError, "Implicit"),
    "no stages": (lambda: ti.solvers.Polyalgorithm(()), ValueError, r"at least one; got \(\)"),
    "a solver as stages": (
        lambda: ti.solvers.Polyalgorithm(ti.solvers.Newton()),
        ValueError,
        "tuple of solvers.*Newton",
    ),
    "a stage that is a name": (
        lambda: ti.solvers.Polyalgorithm(("newton",)),
        TypeError,
        r"such as Newton\(\).*'newton'",
    ),
    "a stage that is a class": (lambda: ti.solvers.Polyalgorithm((ti.solvers.Newton,)), TypeError, r"Newton\(\)"),
    "stages within stages": (
        lambda: ti.solvers.Polyalgorithm((ti.solvers.Polyalgorithm((ti.solvers.Newton(),)),)),
        TypeError,
        "no Polyalgorithm itself",
    ),
    "SciPy's tolerance": (lambda: ti.interop.SciPy("hybr", tol=-1), ValueError, "SciPy: tol > 0.*-1"),
    "no terms": (lambda: ti.linear.Neumann(0), ValueError, "terms >= 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_error_says_what_was_passed_and_what_was_expected(case: str) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=f"(?s){message}"):
        call()


def test_a_black_box_under_vmap_says_what_to_do() -> None:
    solve = ti.implicit(lambda z, x: z - x)(lambda x: x.clone())
    with pytest.raises(RuntimeError, match='vmap="sequential"'):
        torch.vmap(solve)(Z)


def test_a_black_box_that_answers_wrongly_is_reported() -> None:
    solve = ti.implicit(lambda z, x: z - x)(lambda x: x + 1)
    with pytest.warns(ti.ConvergenceWarning, match="not accepted"):
        solve(Z + 1)


def test_an_exception_of_the_users_function_comes_through_and_leaves_nothing_behind() -> None:
    class Mine(Exception):
        pass

    def g(z: Tensor) -> Tensor:
        raise Mine("mine")

    for _ in range(2):
        with pytest.raises(Mine, match=r"^mine$"):
            ti.root(g, Z)
        with pytest.raises(Mine):
            torch.func.grad(lambda x: ti.root(lambda z: g(z) - x, Z).value.sum())(Z)
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    ti.root(lambda z: 2 * z - x, Z).value.sum().backward()
    assert torch.allclose(x.grad, torch.full_like(Z, 0.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_start_that_is_not_finite_is_reported(bad: float) -> None:
    with pytest.warns(ti.ConvergenceWarning, match="nonfinite"):
        info = ti.root(lambda z: z - 1, torch.full((2,), bad)).info
    assert info.status == ti.Status.NONFINITE


def test_a_singular_matrix_is_reported() -> None:
    with pytest.warns(ti.ConvergenceWarning, match="singular"):
        ti.linear_solve(torch.tensor([[1.0, 2.0], [2.0, 4.0]]), torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Unrolled(steps=2), ti.Unrolled(), ti.OneStep(), ti.Phantom(2)])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_solve_is_solved(shape: tuple[int, int], adjoint: Any) -> None:
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    how = {"batch_ndim": 1, "adjoint": adjoint}
    squares = lambda z: (z - x).square().sum(-1)  # noqa: E731
    for z, info in (
        ti.fixed_point(lambda z: 0.5 * z + x, torch.zeros_like(x), **how),
        ti.root(lambda z: z - x, torch.zeros_like(x), **how),
        ti.minimize(squares, torch.zeros_like(x), **how),
        ti.minimize(squares, torch.zeros_like(x), bounds=(-1, x + 1), **how),
        ti.least_squares(lambda z: z - x, torch.zeros_like(x), loss="cauchy", **how),
        ti.least_squares(lambda z: z - x, torch.zeros_like(x), bounds=(x - 1, None), **how),
    ):
        if z.requires_grad:  # steps that all are refused leave nothing to go back through
            z.sum().backward()
        assert z.shape == shape
        assert info.converged.shape == shape[:1]
        assert info.converged.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_and_returned_as_it_came(dtype: torch.dtype) -> None:
    W = (torch.randn(3, 3, generator=torch.Generator().manual_seed(0)) / 6).to(dtype).requires_grad_()
    z, _info = ti.fixed_point(lambda z: torch.tanh(W @ z + 1), torch.zeros(3, dtype=dtype))
    z.sum().backward()
    assert z.dtype == W.grad.dtype == dtype
    exact = ti.fixed_point(lambda z: torch.tanh(W.detach().double() @ z + 1), Z).value
    assert torch.allclose(z.double(), exact, atol=0.05)


def test_a_matrix_with_a_nan_is_not_called_singular() -> None:
    A = torch.stack([torch.eye(2) * torch.nan, 2 * torch.eye(2)])
    with pytest.warns(ti.ConvergenceWarning, match="nonfinite"):
        z, info = ti.linear_solve(A, torch.ones(2, 2))
    assert info.status.tolist() == [ti.Status.NONFINITE, ti.Status.CONVERGED]
    assert torch.allclose(z[1], torch.full((2,), 0.5))


def expanding(z: Tensor) -> Tensor:
    return ti.fixed_point(lambda z: 2 * z + 1, z, solver="picard").value


@pytest.mark.parametrize("solve", [expanding, torch.vmap(expanding)])
def test_the_warning_points_at_the_line_that_called(solve: Callable[[Tensor], Tensor]) -> None:
    with pytest.warns(ti.ConvergenceWarning) as caught:
        solve(Z)
    assert {w.filename for w in caught} == {__file__}


def test_a_warning_in_a_script_names_its_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import torch, torchimplicit as ti\n\nti.root(lambda z: z**2 + 1, torch.tensor(0.3))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert f"{script}:3: ConvergenceWarning" in done.stderr


def test_an_error_within_the_users_function_is_left_as_it_is() -> None:
    def inner(z: Tensor) -> Tensor:
        return z

    with pytest.raises(TypeError, match=r"positional argument but 2 were given$"):
        ti.root(lambda z, x: inner(z, x), Z, (Z,))  # type: ignore[call-arg]
