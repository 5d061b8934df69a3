"""The measurements as tables of text, for the terminal and the report alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from torchimplicit.demo.claims import BackwardSolver, FoldPoint, LongProduct, Reuse, RootFinder, SideBySide

if TYPE_CHECKING:
    from torchimplicit.demo.measurements import Measurements


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose_columns: Sequence[int] = (0,)
    """set to the left; all others hold numbers, set to the right"""


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """1234.5 -> '1.2·10³'; numbers that are easy to read as they are stay so."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    if value != value or abs(value) == float("inf"):
        return "not finite"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPT)}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:  # three digits, never 1e+03
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def side_by_side(title: str, comparison: SideBySide) -> Table:
    return Table(
        title=title,
        columns=(
            "steps",
            "error\nexplicit",
            "\nimplicit",
            "backward\nexplicit",
            "\nimplicit",
            "saved\nexplicit",
            "\nimplicit",
            "norm\nexplicit",
            "\nimplicit",
        ),
        rows=[
            (
                str(e.steps),
                number(e.error),
                number(i.error),
                duration(e.backward_seconds),
                duration(i.backward_seconds),
                size(e.saved_bytes),
                size(i.saved_bytes),
                number(e.norm),
                number(i.norm),
            )
            for e, i in zip(comparison.explicit, comparison.implicit)
        ],
        prose_columns=(),
    )


def long_products(vanishing: list[LongProduct], exploding: list[LongProduct]) -> Table:
    return Table(
        title="Long products of Jacobians: tanh(gain · W z + x), gain 0.8 and 2.5",
        columns=(
            "steps",
            "gain 0.8\n|dℓ/dz₀|",
            "explicit\n|dℓ/dx|",
            "implicit\n|dℓ/dx|",
            "gain 2.5\n|dℓ/dz₀|",
            "explicit\n|dℓ/dx|",
            "implicit\n|dℓ/dx|",
            "implicit\nerror",
        ),
        rows=[
            (
                str(v.steps),
                number(v.start),
                number(v.explicit),
                number(v.implicit),
                number(e.start),
                number(e.explicit),
                number(e.implicit),
                number(max(v.implicit_error, e.implicit_error)),
            )
            for v, e in zip(vanishing, exploding)
        ],
        prose_columns=(),
    )


def fold(points: list[FoldPoint]) -> Table:
    return Table(
        title="Towards a singular Jacobian",
        columns=("x", "smallest\nsingular value", "|dz₁/dx|", "backward solve"),
        rows=[
            (
                number(p.x),
                number(p.smallest_singular_value),
                number(p.gradient) if p.status == "converged" else "none",
                p.status,
            )
            for p in points
        ],
        prose_columns=(3,),
    )


def backward_solvers(rows: list[BackwardSolver]) -> Table:
    return Table(
        title="The backward system of the trained layer, without an inverse",
        columns=("linear solver", "iterations", "products", "time", "gradient\nerror"),
        rows=[
            (row.name, f"{row.iterations:.1f}", str(row.products), duration(row.seconds), number(row.error))
            for row in rows
        ],
    )


def reuse(rows: list[Reuse]) -> Table:
    return Table(
        title="One Jacobian for Newton's method and for the gradient",
        columns=(
            "backward with",
            "forward\nsteps",
            "forward\ncalls of g",
            "backward\nproducts",
            "backward\ntime",
            "gradient\nerror",
        ),
        rows=[
            (
                row.name,
                f"{row.forward_steps:.1f}",
                str(row.evaluations),
                str(row.backward_products),
                duration(row.backward_seconds),
                number(row.error),
            )
            for row in rows
        ],
    )


def root_finders(rows: list[RootFinder]) -> Table:
    return Table(
        title="It does not matter which algorithm found the root",
        columns=("algorithm", "steps", "distance\nof the root", "gradient\nerror"),
        rows=[
            (row.name, "–" if row.steps is None else f"{row.steps:.1f}", number(row.root_distance), number(row.error))
            for row in rows
        ],
    )


def all_tables(m: Measurements) -> list[Table]:
    return [
        side_by_side("The trained equilibrium layer, plain steps", m.equilibrium),
        side_by_side("The Newton layer", m.newton),
        long_products(m.vanishing, m.exploding),
        fold(m.fold),
        backward_solvers(m.backward_solvers),
        reuse(m.reuse),
        root_finders(m.root_finders),
    ]


def for_terminal(table: Table) -> RichTable:
    rich_table = RichTable(
        title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=0, pad_edge=False
    )
    for i, column in enumerate(table.columns):
        rich_table.add_column(column, justify="left" if i in table.prose_columns else "right")
    for row in table.rows:
        rich_table.add_row(*row)
    return rich_table
