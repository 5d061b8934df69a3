"""What ``torchimplicit check --html`` writes of a user's own layers: verdicts, numbers, plots."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import torch

from torchimplicit.demo.drawing import EXPLICIT, IMPLICIT, LINE, THIRD, figure
from torchimplicit.demo.page import fact, page, plots, table
from torchimplicit.demo.tables import Table, number
from torchimplicit.diagnostics import Check
from torchimplicit.diagnostics.checked_problem import CheckedProblem
from torchimplicit.diagnostics.spectrum import affordable
from torchimplicit.layout import Layout
from torchimplicit.linear import Jacobian

SYSTEMS = 16  # of a batch, whose eigenvalues are drawn


@dataclass(frozen=True)
class Looked:
    """A layer that was checked, and what is drawn of it."""

    name: str
    report: Check
    worst: list[float]
    """residual of the batch before the first and after every step"""
    median: list[float]
    eigenvalues: list[complex]
    """of ∂f/∂z of a fixed point, of ∂g/∂z of anything else, at z*; empty where the matrix is too large"""


def look(
    name: str, report: Check, f: Any, z0: Any, args: tuple[Any, ...] = (), kind: Any = "fixed_point", **keywords: Any
) -> Looked:
    """Solve once more, step by step, and take the eigenvalues where it ends. The arguments are those of the check."""
    seen: list[torch.Tensor] = []
    keywords.pop("has_aux", None)
    layout = Layout.of(z0, keywords.get("batch_ndim", 0))
    problem = CheckedProblem(f, z0, tuple(args), kind, keywords, layout)
    z, _ = problem.solve(z0, callback=lambda step, z, residual: seen.append(residual.detach().flatten()))
    A = Jacobian(problem.condition, layout.flatten(z).detach())
    values: list[complex] = []
    if affordable(A) and bool(A.value.isfinite().all()):
        J = A.to_dense().detach()[:SYSTEMS]
        J = torch.eye(J.shape[-1]).to(J) - J if kind == "fixed_point" else J
        values = torch.linalg.eigvals(J).flatten().tolist()
    worst, median = ([float(getattr(r, how)()) for r in seen if r.numel()] for how in ("max", "median"))
    return Looked(name, report, worst, median, values)


def html(layers: list[Looked]) -> str:
    """The whole page."""
    well = all(layer.report.ok for layer in layers)
    what = "Everything that was looked at is well." if well else "Something is wrong, or refused: see the verdicts."
    head = f'<h1>Implicit layers, checked</h1>\n<p class="lead">{what}</p>'
    return page("Implicit layers, checked", head, *(section(layer) for layer in layers))


def section(layer: Looked) -> str:
    report = layer.report
    heading, *_ = str(report).splitlines()
    verdicts = Table(
        title="Verdicts",
        columns=("", "what", "found"),
        rows=[(verdict.level, verdict.name, verdict.text) for verdict in report.verdicts],
        prose_columns=(0, 1, 2),
    )
    drawn = [residuals(layer), steps(report), eigenvalues(layer), times(report)]
    return (
        f"<h2>{escape(layer.name)}</h2>\n<p>{escape(heading)}</p>\n"
        f'<div class="facts">{"".join(facts(report))}</div>\n{plots(*(svg for svg in drawn if svg))}\n'
        f'<div class="wrapped">{table(verdicts)}</div>'
    )


def facts(report: Check) -> list[str]:
    """The numbers that are known."""
    known = (
        (report.spectral_radius, "spectral radius of ∂f/∂z: below 1, plain steps converge"),
        (report.smallest_singular_value, "smallest singular value of ∂g/∂z: above 0, there is a derivative"),
        (report.gradient_error, "relative difference of the implicit gradient from finite differences"),
        (report.explicit_error, "of the gradient through the steps from the implicit one"),
    )
    return [fact(number(value), meaning) for value, meaning in known if value is not None]


def residuals(layer: Looked) -> str:
    positive = [value for value in layer.worst if value > 0]
    if len(positive) < 2:
        return ""

    def draw(axes: Any) -> None:
        axes.plot(layer.worst, color=IMPLICIT, label="worst")
        if layer.report.systems > 1:
            axes.plot(layer.median, color=THIRD, label="median")

    return figure("Residual", "step", draw)


def steps(report: Check) -> str:
    counts = report.info.steps.flatten().tolist()
    if len(counts) < 2:
        return ""

    def draw(axes: Any) -> None:
        axes.hist(counts, bins=[k - 0.5 for k in range(min(counts), max(counts) + 2)], color=IMPLICIT)

    return figure("Systems by the steps they take", "steps", draw, log="")


def eigenvalues(layer: Looked) -> str:
    if not layer.eigenvalues:
        return ""
    fixed = layer.report.kind == "fixed_point"

    def draw(axes: Any) -> None:
        if fixed:
            angles = torch.linspace(0, 2 * torch.pi, 200)
            axes.plot(angles.cos(), angles.sin(), color=LINE)
        else:
            axes.plot([0], [0], marker="x", color=EXPLICIT, linestyle="", label="0: singular")
        axes.plot(
            [v.real for v in layer.eigenvalues], [v.imag for v in layer.eigenvalues], ".", color=IMPLICIT, markersize=4
        )
        axes.set_aspect("equal", adjustable="datalim")

    title = "Eigenvalues of ∂f/∂z, and the unit circle" if fixed else "Eigenvalues of ∂g/∂z"
    return figure(title, "real part", draw, log="")


def times(report: Check) -> str:
    """Of the layer; the finite differences of the check are no cost of its own."""
    milliseconds = {name: 1e3 * seconds for name, seconds in report.seconds.items() if name != "finite differences"}

    def draw(axes: Any) -> None:
        colours = [EXPLICIT if name.startswith("explicit") else IMPLICIT for name in milliseconds]
        axes.bar(range(len(milliseconds)), milliseconds.values(), color=colours)
        axes.set_xticks(range(len(milliseconds)), [name.replace(" ", "\n") for name in milliseconds])

    return figure("Time, milliseconds", "", draw, log="")
