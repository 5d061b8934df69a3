"""The plots of the demo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter, NullFormatter

from torchimplicit.demo.drawing import EXPLICIT, IMPLICIT, LINE, THIRD, figure, power_of_ten

if TYPE_CHECKING:
    from torchimplicit.demo.claims import FoldPoint, LongProduct, SideBySide
    from torchimplicit.demo.instruments import Measured
    from torchimplicit.demo.train import Epoch


def step_axis(axes: Any, steps: Sequence[int]) -> None:
    axes.set_xticks(steps, [str(k) for k in steps])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def loss(history: list[Epoch]) -> str:
    def draw(axes: Any) -> None:
        axes.plot(range(1, len(history) + 1), [epoch.loss for epoch in history], color=IMPLICIT, marker="o")

    return figure("Training loss", "epoch", draw, log="")


def accuracy(history: list[Epoch]) -> str:
    def draw(axes: Any) -> None:
        percent = [100 * epoch.accuracy for epoch in history]
        axes.plot(range(1, len(history) + 1), percent, color=IMPLICIT, marker="o")
        axes.axhline(97, color=LINE, linestyle="--")
        axes.set_ylim(min(90.0, *percent[1:]) - 1, 100.5)

    return figure("Test accuracy, per cent (dashed: 97)", "epoch", draw, log="")


def training_steps(history: list[Epoch]) -> str:
    def draw(axes: Any) -> None:
        epochs = range(1, len(history) + 1)
        axes.plot(epochs, [epoch.forward_steps for epoch in history], color=IMPLICIT, label="forward")
        axes.plot(epochs, [epoch.backward_steps for epoch in history], color=THIRD, label="backward")
        axes.set_ylim(bottom=0)

    return figure("Solver steps per batch, mean", "epoch", draw, log="")


def image_steps(steps: list[int]) -> str:
    def draw(axes: Any) -> None:
        axes.hist(steps, bins=[k - 0.5 for k in range(min(steps), max(steps) + 2)], color=IMPLICIT)

    return figure("Test images by the steps they take", "solver steps", draw, log="")


def residuals(title: str, curves: dict[str, list[float]]) -> str:
    def draw(axes: Any) -> None:
        for (name, values), colour in zip(curves.items(), (IMPLICIT, THIRD)):
            axes.plot(values, color=colour, label=name if len(curves) > 1 else None)

    return figure(title, "step", draw)


def compare(
    title: str,
    comparison: SideBySide,
    what: Callable[[Measured], float],
    log: str = "xy",
    unit: Callable[[float], str] | None = None,
) -> str:
    def draw(axes: Any) -> None:
        steps = [run.steps for run in comparison.explicit]
        axes.plot(steps, [what(run) for run in comparison.explicit], color=EXPLICIT, marker="o", label="explicit")
        axes.plot(steps, [what(run) for run in comparison.implicit], color=IMPLICIT, marker="s", label="implicit")
        step_axis(axes, steps)
        if "y" not in log:
            axes.set_ylim(0, 1.4 * axes.get_ylim()[1])

    return figure(title, "forward steps", draw, log, unit)


def products(title: str, rows: list[LongProduct]) -> str:
    def draw(axes: Any) -> None:
        steps = [row.steps for row in rows]
        axes.plot(steps, [row.start for row in rows], color=THIRD, marker="^", label="explicit, dℓ/dz₀")
        axes.plot(steps, [row.explicit for row in rows], color=EXPLICIT, marker="o", label="explicit, dℓ/dx")
        axes.plot(steps, [row.implicit for row in rows], color=IMPLICIT, marker="s", label="implicit, dℓ/dx")
        step_axis(axes, steps)

    return figure(title, "forward steps", draw, log="xy")


def fold(points: list[FoldPoint]) -> str:
    def draw(axes: Any) -> None:
        regular = [point for point in points if point.x > 0]
        x = [point.x for point in regular]
        axes.plot(
            x, [p.smallest_singular_value for p in regular], color=IMPLICIT, marker="s", label="σ of ∂g/∂z, smallest"
        )
        axes.plot(x, [p.gradient for p in regular], color=EXPLICIT, marker="o", label="|dz₁/dx|")
        axes.xaxis.set_major_formatter(FuncFormatter(power_of_ten))

    return figure("Towards the fold", "x", draw, log="xy")


def digit(pixels: list[list[float]]) -> str:
    """An 8x8 image as squares of the page's ink."""
    squares = "".join(
        f'<rect x="{column}" y="{row}" width="1.03" height="1.03" fill-opacity="{value:.2f}"/>'
        for row, line in enumerate(pixels)
        for column, value in enumerate(line)
        if value > 0
    )
    return f'<svg viewBox="0 0 8 8" class="digit" fill="currentColor" aria-hidden="true">{squares}</svg>'
