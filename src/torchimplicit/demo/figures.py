"""The plots, as SVG to stand inside a page: small, and in the page's own colours, so light and dark both work."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from torchimplicit.demo.tables import SUPERSCRIPT

if TYPE_CHECKING:
    from torchimplicit.demo.claims import FoldPoint, LongProduct, SideBySide
    from torchimplicit.demo.instruments import Measured
    from torchimplicit.demo.train import Epoch

# Stand-ins that matplotlib can draw with; each is replaced by the page's variable of the same meaning.
EXPLICIT, IMPLICIT, THIRD, INK, LINE = "#e00001", "#0000e2", "#00e003", "#040404", "#c5c5c5"
VARIABLES = {
    EXPLICIT: "var(--explicit)",
    IMPLICIT: "var(--implicit)",
    THIRD: "var(--third)",
    INK: "currentColor",
    LINE: "var(--line)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be selected
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}
numbers = count()


def figure(
    title: str, x: str, draw: Callable[[Any], None], log: str = "y", unit: Callable[[float], str] | None = None
) -> str:
    """One plot as an ``<svg>`` element; ``log`` names the logarithmic axes, ``unit`` writes the y axis' numbers."""
    with matplotlib.rc_context(STYLE):
        page = Figure(figsize=(4.6, 3.1), layout="constrained")
        axes = page.add_subplot()
        axes.set_title(title)
        axes.set_xlabel(x)
        if "x" in log:
            axes.set_xscale("log")
        if "y" in log:
            axes.set_yscale("log")
        if "x" not in log:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        draw(axes)
        if "y" in log:
            whole_decades(axes)
            axes.yaxis.set_major_locator(LogLocator(numticks=7))
            axes.yaxis.set_major_formatter(FuncFormatter(power_of_ten if unit is None else lambda y, _: unit(y)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        drawn = io.StringIO()
        page.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(drawn.getvalue(), title)


def whole_decades(axes: Any) -> None:
    """Two decades at least, so that small differences look small."""
    low, high = axes.get_ylim()
    low, high = math.floor(math.log10(low) + 0.1), math.ceil(math.log10(high) - 0.1)
    axes.set_ylim(10.0 ** min(low, high - 2), 10.0**high)


def power_of_ten(value: float, _: int) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"10{str(int(exponent)).translate(SUPERSCRIPT)}" if mantissa == "1" else ""


def inline(svg: str, title: str) -> str:
    """A matplotlib file made fit to stand inside HTML: nothing external, own ids, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    mark = f"f{next(numbers)}-"
    svg = re.sub(r'\bid="', f'id="{mark}', svg)
    svg = svg.replace('href="#', f'href="#{mark}').replace("url(#", f"url(#{mark}")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"font: ([^;\"']*?)([\d.]+px) [^;\"]*", r"font: \1\2 var(--sans)", svg)
    viewbox = re.search(r'viewBox="[^"]*"', svg)
    assert viewbox is not None
    return re.sub(r"<svg[^>]*>", f'<svg {viewbox.group()} role="img" aria-label="{title}">', svg, count=1)


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
