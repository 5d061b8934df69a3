"""Solvers by name, as objects, and the documented automatic choice."""

from __future__ import annotations

import pytest
import torch

import torchimplicit as ti
from torchimplicit.condition import Kind
from torchimplicit.layout import Layout
from torchimplicit.solvers import NAMES, choose, resolve


def sized(batch: int, n: int) -> Layout:
    """Of so many systems of so many unknowns."""
    return Layout.of(torch.zeros(1).expand(batch, n), 1)


def kind(**facts: bool) -> Kind:
    """Of which all of these is true."""
    found = Kind()
    vars(found).update(facts)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_for_the_object_with_its_defaults_and_is_that_of_its_class(name: str) -> None:
    solver = resolve(name, Kind(), sized(1, 3))
    named = type(solver)
    assert solver == named()
    assert named.__name__.lower() == name.replace("_", "")
    assert getattr(ti.solvers, named.__name__) is named
    assert named.__name__ in ti.solvers.__all__


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_point_says_what_each_name_is_for(name: str) -> None:
    texts = [str(entry.__doc__) for entry in (ti.root, ti.minimize, ti.least_squares, ti.complementarity)]
    assert any(f'"{name}"' in text.split("solver:")[1].split("adjoint:")[0] for text in texts)


def stages(batch: int, n: int) -> tuple[ti.solvers.Method, ...]:
    chosen = choose(Kind(), sized(batch, n))
    assert isinstance(chosen, ti.solvers.Polyalgorithm)
    return tuple(chosen.stages)


def test_auto_is_what_its_documentation_says() -> None:
    assert isinstance(choose(kind(near_identity=True), sized(1, 1)), ti.solvers.Anderson)
    assert [type(stage).__name__ for stage in stages(1, 63)] == [type(stage).__name__ for stage in stages(1, 64)[1:]]
    assert [type(stage).__name__ for stage in stages(1, 256)] == [
        "Broyden",
        "Newton",
        "Dogleg",
        "PseudoTransient",
        "PseudoTransient",
    ]
    assert [type(stage).__name__ for stage in stages(1, 257)] == ["NewtonKrylov", "NewtonKrylov", "PseudoTransient"]
    assert stages(2**26 // 128**2 + 1, 128) == stages(1, 257)
    assert isinstance(choose(kind(minimised=True), sized(1, 256)), ti.solvers.TrustNewton)
    assert isinstance(choose(kind(minimised=True), sized(1, 257)), ti.solvers.NewtonCG)
    assert choose(kind(minimised=True, bounded=True), sized(1, 256)) == ti.solvers.ProjectedNewton()
    assert resolve("auto", Kind(), sized(1, 3)) == resolve(None, Kind(), sized(1, 3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ti.solvers.Newton(linear_solver=ti.linear.GMRES()), TypeError, "direct.*LU.*GMRES.*NewtonKrylov"),
        (lambda: ti.solvers.Chord(linear_solver=ti.linear.LU), TypeError, "direct solver object"),
        (lambda: ti.solvers.NewtonKrylov(linear_solver=ti.linear.LU()), TypeError, "iterative.*LU.*Newton"),
        (lambda: ti.solvers.Anderson(memory=2.5), ValueError, "integer; got 2.5"),
        (lambda: ti.solvers.Broyden(memory=0), ValueError, "memory >= 1"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        make()


@pytest.mark.parametrize("wrong", ["Newton", "", "levenberg"])
def test_an_unknown_name_lists_the_names(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"newton_krylov.*picard"):
        ti.root(lambda z: z - 1, torch.zeros(2), solver=wrong)
