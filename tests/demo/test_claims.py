"""Each claim of the demo holds, on small layers; times are never looked at."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("scipy")

from torchimplicit.demo import claims, layers
from torchimplicit.demo.train import Classifier


@pytest.fixture(scope="module")
def equilibrium():
    torch.manual_seed(0)
    model = Classifier(channels=4).eval()
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    return lambda dtype: layers.equilibrium(model, images, labels, dtype)


def test_plain_steps_gain_a_constant_factor_and_newton_doubles_the_digits(equilibrium):
    plain = claims.residuals(equilibrium(torch.float64), "picard", 20)
    assert len(plain) >= 11
    assert all(later < 0.95 * earlier for earlier, later in pairwise(plain[:11]))
    newton = claims.residuals(layers.newton(torch.float64), "newton", 5)
    assert newton[4] < 1e-9
    assert newton[3] < 10 * newton[2] ** 2


@pytest.mark.parametrize("solver", ["picard", "newton"])
def test_implicit_keeps_the_same_and_explicit_grows(solver, equilibrium):
    make = equilibrium if solver == "picard" else layers.newton
    comparison = claims.side_by_side(make, solver, steps=(40, 80), repeats=1)
    assert comparison.reference_error < 1e-6
    few, many = comparison.implicit
    assert few.saved_bytes == many.saved_bytes
    assert many.error < 1e-5
    few, many = comparison.explicit
    assert 1.8 < many.saved_bytes / few.saved_bytes < 2.1
    assert many.saved_bytes > 5 * comparison.implicit[1].saved_bytes
    assert many.error < 1e-5


def test_the_product_of_contracting_steps_vanishes():
    rows = claims.long_products(0.8, steps=(20, 100))
    assert rows[1].start < 1e-5 * rows[0].start
    assert rows[1].implicit == pytest.approx(rows[0].implicit)
    assert rows[1].explicit == pytest.approx(rows[1].implicit, rel=1e-4)


def test_the_product_of_expanding_steps_explodes_and_the_implicit_gradient_does_not():
    rows = claims.long_products(2.5, steps=(20, 100))
    assert rows[1].explicit > 1e5 * rows[0].explicit
    assert rows[1].residual > 0.1  # no fixed point was found by plain steps
    assert all(row.implicit_error < 1e-4 for row in rows)


def test_the_two_terms_cancel():
    terms = claims.two_terms()
    assert terms.held_z > 1
    assert terms.sum < 1e-12 * terms.held_z
    assert terms.derivative_error < 1e-8


def test_a_singular_jacobian_is_said_and_a_regular_one_is_not():
    *regular, last = claims.fold()
    for point in regular:
        assert point.status == "converged"
        assert point.said == ""
        # z₁² + z₁³/6 = x, differentiated by hand
        z = torch.tensor(point.x, dtype=torch.float64).sqrt()
        for _ in range(50):
            z = z - (z**2 + z**3 / 6 - point.x) / (2 * z + z**2 / 2)
        assert point.gradient == pytest.approx(1 / (2 * z + z**2 / 2).item(), rel=1e-6)
    assert last.x == 0
    assert last.status == "singular"
    assert "singular" in last.said


def test_every_backward_solver_gives_the_gradient_but_a_short_series(equilibrium):
    rows = {row.name: row for row in claims.backward_solvers(equilibrium)}
    for name in ("automatic", "GMRES", "BiCGStab", "Neumann series, 50 terms"):
        assert rows[name].error < 1e-5
    assert rows["Neumann series, 10 terms"].error > 10 * rows["GMRES"].error


def test_factors_of_the_forward_pass_save_products():
    kept, fresh, none = claims.reuse(repeats=1)
    assert kept.backward_products < none.backward_products
    assert kept.backward_products < fresh.backward_products
    assert all(row.error < 1e-4 for row in (kept, fresh, none))


def test_the_gradient_does_not_depend_on_the_algorithm_that_found_the_root():
    rows = claims.root_finders()
    assert len(rows) == 6
    assert all(row.root_distance < 1e-9 for row in rows)
    assert all(row.error < 1e-8 for row in rows)
