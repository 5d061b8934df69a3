"""What is known not to hold, and why: each is wrong, or costs too much, in a way that the closing of a gap will show here."""

from __future__ import annotations

import pytest

ATOL_ALONE = "from 1e-30 the corrections are far below atol, and become smaller: chord takes that for convergence"
LEAP = "float32: one leap to where 1/z is nothing; what is seen there is the leap"
KNOWN = {
    "test_no_start_makes_a_root_of_what_is_none[chord-logarithm-dtype0]": ATOL_ALONE,
    "test_no_start_makes_a_root_of_what_is_none[chord-logarithm-dtype1]": ATOL_ALONE,
    "test_no_start_makes_a_root_of_what_is_none[newton_krylov-logarithm-dtype1]": ATOL_ALONE,
    "test_no_start_makes_a_root_of_what_is_none[pseudo_transient-reciprocal-dtype1]": LEAP,
    "test_no_start_makes_a_root_of_what_is_none[broyden-reciprocal-dtype1]": LEAP,
    "test_no_start_makes_a_root_of_what_is_none[anderson-reciprocal-dtype1]": LEAP,
    "test_no_start_makes_a_root_of_what_is_none[picard-reciprocal-dtype1]": LEAP,
    "test_a_fit_from_afar_is_right_or_it_is_said[dtype1-lbfgs]": "float32: curvature of one number hides that of another",
    "test_the_unit_of_residuals[single-many]": "steps differ by more than one in float32",
    "test_the_extreme_units_of_residuals[nonlinear_cg-single]": "steps differ by more than one in float32",
    "test_the_unit_of_the_unknowns_of_a_fit[nonlinear_cg-single]": "steps differ by more than one in float32",
    "test_a_minimum[newton_cg-single]": "float32: its own answer takes it some steps more",
    "test_a_fit[newton_cg-single]": "float32: its own answer takes it some steps more",
    "test_each_step_of_a_heat_equation_starts_from_the_last[auto-100-dtype0]": "Broyden's method goes first",
    "test_each_step_of_a_heat_equation_starts_from_the_last[auto-100-dtype1]": "Broyden's method goes first",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name in KNOWN:
            item.add_marker(pytest.mark.xfail(reason=KNOWN[item.name]))  # strictly: pyproject.toml
