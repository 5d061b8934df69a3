"""The table of docs/concepts/compile.md, cell by cell: what is part of a graph gives what plain code does."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import torchimplicit as ti
from torchimplicit.compiling import compiled_search
from torchimplicit.compiling.region import IN_GRAPH, LINEAR
from torchimplicit.private.dynamo import AVAILABLE

from . import graph_cases
from .graph_cases import CASES, Case, D
from .graph_models import value_and_gradient as differentiated
from .refused_cases import REFUSED, Refused

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this PyTorch cannot have a loop around a function in a graph")


TABLE = (Path(__file__).parents[2] / "docs" / "concepts" / "compile.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in TABLE.splitlines() if line.startswith("| ") and "| yes |" in line]
QUICK = {"fixed_point the same picard"}


def quick_or_slow(cases: list[Any], quick: set[str]) -> list[Any]:
    """Of these the quick ones are among the fast tests."""
    return [pytest.param(case, id=str(case), marks=() if str(case) in quick else pytest.mark.slow) for case in cases]


def named(cell: str) -> set[str]:
    """What is named by its own name in a cell of the table: calls, options, methods, linear solvers."""
    methods = {*ti.solvers.NAMES, *ti.linear.SOLVERS}
    return {
        word
        for word in re.findall(r"`[^`]+`|\w+", cell)
        if word != "`torch.compile`" and (word.startswith("`") or word in methods)
    }


def test_every_name_in_the_table_has_its_case() -> None:
    assert len(ROWS) >= 15
    for first, *rest in ROWS:
        if rest[1] == "yes" or rest[1] == "the first of them":
            tried = {name for case in CASES if first.startswith(case.row) for name in case.names}
            assert named(first) <= tried, first
        else:
            tried_words = " ".join(case.names for case in REFUSED) + " second derivatives"
            assert all(name in tried_words for name in named(first)), first


def test_every_method_and_linear_solver_that_can_be_in_a_graph_is_in_the_table() -> None:
    yes = " ".join(first for first, *rest in ROWS if rest[1] == "yes")
    assert {*IN_GRAPH, *LINEAR} - {"auto"} <= named(yes)


def inputs(rows: int) -> Tensor:
    """Of each row the first number is well above or well below 1/2."""
    x = 0.1 + 0.8 * torch.rand(rows, 2, dtype=D, generator=torch.Generator().manual_seed(rows))
    x[:, 0] = torch.where(torch.arange(rows) % 2 == 0, 0.2, 0.6) + 0.2 * x[:, 0]
    return x


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ti.ConvergenceWarning)  # of what fails in plain code too
        yield


def value_and_gradient(solve: Callable[..., Any], x: Tensor) -> tuple[Tensor, Any, Tensor]:
    x = x.clone().requires_grad_()
    z, info = solve(x)
    weights = torch.arange(1, z.shape[1] + 1, dtype=D) / z.shape[1]
    (grad,) = torch.autograd.grad((z * weights).sum(), x)
    return z.detach(), info, grad


def assert_the_same(found: tuple[Tensor, Any, Tensor], expected: tuple[Tensor, Any, Tensor], case: Case) -> None:
    near = {"rtol": case.tolerance, "atol": case.tolerance, "equal_nan": True}
    torch.testing.assert_close(found[0], expected[0], **near)
    torch.testing.assert_close(found[2], expected[2], **near)
    assert (found[1] is None) == (expected[1] is None)
    if found[1] is not None:
        assert torch.equal(found[1].status, expected[1].status)
        assert not case.same_steps or torch.equal(found[1].steps, expected[1].steps)


@pytest.mark.parametrize("case", quick_or_slow(CASES, QUICK))
def test_in_a_compiled_graph(case: Case) -> None:
    x = inputs(3)
    model = torch.compile(case.solve, fullgraph=True, backend="aot_eager")
    assert_the_same(value_and_gradient(model, x), value_and_gradient(case.solve, x), case)


@pytest.mark.parametrize("case", quick_or_slow([case for case in CASES if case.compiles], set()))
def test_found_by_a_graph_of_ours(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_search.torch, "compile", partial(torch.compile, backend="aot_eager"))
    x = inputs(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compile=True has no effect")
        found = value_and_gradient(partial(case.solve, compile=True), x)
    assert_the_same(found, value_and_gradient(case.solve, x), case)


class Model(nn.Module):
    def __init__(self, solve: Callable[..., Any]) -> None:
        super().__init__()
        self.solve = solve

    def forward(self, x: Tensor) -> Any:
        z, info = self.solve(x)
        return (z,) if info is None else (z, info.status, info.steps)


@pytest.mark.parametrize("case", quick_or_slow([case for case in CASES if case.names != ("autocast",)], set()))
def test_exported_saved_and_loaded(case: Case) -> None:
    model = Model(case.solve)
    sizes = {"x": {0: torch.export.Dim("rows", min=2, max=64)}} if case.any_size else None
    program = torch.export.export(model, (inputs(3),), dynamic_shapes=sizes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for rows in (3, 7) if case.any_size else (3,):
        found, expected = loaded(inputs(rows)), model(inputs(rows))
        torch.testing.assert_close(found[0], expected[0], rtol=case.tolerance, atol=case.tolerance, equal_nan=True)
        if len(found) > 1:
            assert torch.equal(found[1], expected[1])
            assert not case.same_steps or torch.equal(found[2], expected[2])


OF_ANY_SIZE = {
    "root newton", "root newton_krylov", "fixed_point the default", "minimize bfgs", "minimize default", "complex numbers root",
    "linear_solve entries the default", "linear_solve products the default", "implicit", "ti.nn FixedPoint", "pytrees",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if str(case) in OF_ANY_SIZE], ids=str)
def test_one_graph_serves_batches_of_any_size(case: Case) -> None:
    """But of one system: PyTorch has a graph of its own for size 1. Where a module holds a number, it begins the first graph anew."""
    counter = CompileCounterWithBackend("aot_eager")
    model = torch.compile(case.solve, fullgraph=True, backend=counter, dynamic=True)
    made = []
    for rows in (5, 7, 64, 1):
        x = inputs(rows)
        assert_the_same(value_and_gradient(model, x), value_and_gradient(case.solve, x), case)
        made.append(counter.frame_count)
    assert made[0] == made[1] == made[2] < made[3] <= 2 * made[0], made


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_cannot_be_in_a_graph_is_refused_by_name(case: Refused) -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match=case.why):
        torch.compile(case.solve, fullgraph=True, backend="aot_eager")(inputs(3))


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_where_the_graph_may_break_it_is_solved_in_plain_code(case: Refused) -> None:
    x = inputs(3)
    found = differentiated(torch.compile(case.solve, backend="aot_eager"), x)
    torch.testing.assert_close(found, differentiated(case.solve, x), rtol=1e-7, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_cannot_be_in_a_graph_cannot_be_exported(case: Refused) -> None:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return case.solve(x)

    with pytest.raises(Exception, match=case.why):
        torch.export.export(Refusing(), (inputs(3),), strict=True)


ONE_OF_EACH_KIND = {
    "root newton", "root newton_krylov", "root one unknown itp", "fixed_point the default", "minimize default", "bounds= the default",
    "least_squares levenberg_marquardt", "linear_solve entries the default", "linear_solve products GMRES", "implicit", "ti.nn Root",
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    quick_or_slow([case for case in CASES if str(case) in ONE_OF_EACH_KIND], set()),
)
def test_second_derivatives_through_compiled_code_are_refused(case: Case) -> None:
    x = inputs(3).requires_grad_()
    z = torch.compile(case.solve, fullgraph=True, backend="aot_eager")(x)[0]
    (grad,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(grad.sum(), x)


DERIVATIVES: dict[str, Callable[[Tensor], Any]] = {
    "backward": lambda x: torch.autograd.grad(graph_cases.one_system(x, callback=lambda *_: None)[0].sum(), x)[0],
    "jacrev": torch.func.jacrev(lambda x: graph_cases.one_system(x)[0].sum(-1)),
    "jvp": lambda x: torch.func.jvp(lambda x: graph_cases.one_system(x)[0], (x,), (x,)),
    "hessian": torch.func.hessian(lambda x: graph_cases.one_system(x)[0].sum()),
    "gradients of samples": torch.vmap(torch.func.grad(lambda x: graph_cases.one_system(x)[0].sum())),
}


@pytest.mark.parametrize(
    "which", [pytest.param(name, marks=() if name == "backward" else pytest.mark.slow) for name in DERIVATIVES]
)
def test_a_derivative_taken_within_compiled_code_whose_graph_breaks(which: str) -> None:
    """There autograd calls the backward in the midst of what Dynamo reads."""
    derivative, x = DERIVATIVES[which], inputs(3).requires_grad_()
    torch.testing.assert_close(torch.compile(derivative, backend="aot_eager")(x), derivative(x))


def chain(x: Tensor, **how: Any) -> Any:
    """An elastic chain of 300 numbers, some held from above; the condition number of its Hessian is 10⁴."""
    u = graph_cases.spread(x, 300)
    upper = torch.full((300,), torch.inf, dtype=D)
    upper[:100] = 0.7
    phi = lambda z: 5e3 * (z[:, 1:] - z[:, :-1]).square().sum(-1) + ((z - u) ** 2 + z**4 / 10).sum(-1) / 2  # noqa: E731
    bounds = (None, upper)
    return ti.minimize(phi, torch.zeros_like(u), bounds=bounds, batch_ndim=1, solver="projected_newton", **how)


@pytest.mark.slow
def test_a_badly_conditioned_minimum_within_bounds_has_its_derivative() -> None:
    x = inputs(2)
    found, expected = (
        value_and_gradient(each, x) for each in (torch.compile(chain, fullgraph=True, backend="aot_eager"), chain)
    )
    assert ((expected[0] == 0.7).sum(-1) > 0).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ti.ConvergenceWarning)
        torch.testing.assert_close(found[2], expected[2], rtol=1e-4, atol=1e-4)
