"""A plot as SVG to stand inside a page: small, and in the page's own colours, so light and dark both work."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from itertools import count
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from torchimplicit.demo.tables import SUPERSCRIPT

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
