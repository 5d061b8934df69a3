"""The command line: ``torchimplicit demo`` and ``torchimplicit check``."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from torchimplicit.demo.check_report import Looked
    from torchimplicit.diagnostics import Check

# What the commands import beyond torch, and the extra that brings it.
EXTRAS = {
    "typer": "cli",
    "rich": "cli",
    "sklearn": "demo",
    "matplotlib": "demo",
    "scipy": "demo",
    "numpy": "demo",
}


def main() -> None:
    """Entry point of the ``torchimplicit`` command. Exits with 1 and one line if an extra is not installed."""
    try:
        app()()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = f"torchimplicit[{EXTRAS[package]}]"
        sys.exit(f"torchimplicit: this command needs {package}, which is not installed: pip install '{extra}'")


def app() -> typer.Typer:
    """The Typer application; built on demand, since the library itself does without Typer."""
    import typer

    commands = typer.Typer(
        name="torchimplicit",
        help="Implicit layers for PyTorch: see them work, and check your own.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    quick_option = typer.Option(False, "--quick", help="Train less and repeat less: half a minute at most.")
    output_option = typer.Option(Path("report.html"), help="Where to write the report, one self-contained page.")
    seed_option = typer.Option(0, help="Of everything that is random.")
    html_option = typer.Option(None, "--html", help="Write what was found there too, one self-contained page.")
    layers_argument = typer.Argument(metavar="MODULE:CALLABLE...", help="Factories of the layers to check.")

    @commands.command()
    def demo(quick: bool = quick_option, output: Path = output_option, seed: int = seed_option) -> None:
        """Train a deep equilibrium classifier on handwritten digits, and measure what is claimed of implicit layers.

        Prints tables, and writes a report with plots. Everything is on this machine: the data come with scikit-learn.
        """
        for package in EXTRAS:
            importlib.import_module(package)
        from rich.console import Console

        from torchimplicit.demo.run import run

        run(quick, output, seed, Console())

    @commands.command()
    def check(layers: list[str] = layers_argument, seed: int = seed_option, html: Path | None = html_option) -> None:
        """Check your own layers: convergence, well-posedness, and the implicit gradient against independent ones.

        Each MODULE:CALLABLE is called without arguments and returns one of

        - (layer, *inputs): a module of torchimplicit.nn, and example inputs for it.

        - (f, z0), (f, z0, args) or (f, z0, args, kind): a function, a start, its arguments, and what it defines, which
        is "fixed_point" (the default), "root", "minimize" or "least_squares".

        - (f, z0, args, kind, keywords): the same, and keywords for the solve, such as {"batch_ndim": 1}.

        Modules are looked for in the current directory too. Exit code: 1 if a check fails, 2 if there is no such layer or it
        raises an error.
        """
        from rich.console import Console

        from torchimplicit.capture.calls import CaptureError
        from torchimplicit.diagnostics import check as run_check

        console = Console(highlight=False, emoji=False)
        errors = Console(highlight=False, emoji=False, markup=False, style="red", stderr=True, soft_wrap=True)
        sys.path.insert(0, "")
        well, looked = True, []
        for name in layers:
            try:
                arguments = problem_of(made_by(name))
                report = run_check(**arguments, seed=seed)
                if html is not None:
                    looked.append(look_at(name, report, arguments))
            except CaptureError as error:  # its gradient would be lost: this layer fails, and the others are checked
                errors.print(f"{name}: {in_one_line(error)}")
                well = False
                continue
            except Exception as error:  # whatever the user's module, factory or layer raises
                errors.print(f"{name}: {in_one_line(error)}")
                raise typer.Exit(2) from error
            show(report, name, console)
            well = well and report.ok
        if html is not None:
            write(looked, html)
            console.print(f"report: {html}")
        if not well:
            raise typer.Exit(1)

    return commands


def show(report: Check, name: str, console: Console) -> None:
    """Print a report with its verdicts in columns."""
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "note": "yellow", "fail": "red"}
    heading, *_ = str(report).splitlines()
    table = Table(title=f"{name}: {heading}", title_justify="left", title_style="bold", box=None, show_header=False)
    for verdict in report.verdicts:
        table.add_row(Text(verdict.level, style=colours[verdict.level]), verdict.name, Text(verdict.text))
    console.print(table)


def look_at(name: str, report: Check, arguments: dict[str, Any]) -> Looked:
    """What a page shows of a layer that was checked; it is drawn with what the demo needs."""
    from torchimplicit.demo.check_report import look

    return look(name, report, **arguments)


def write(layers: list[Looked], file: Path) -> None:
    """The page of all that were checked."""
    from torchimplicit.demo.check_report import html

    file.write_text(html(layers), encoding="utf-8")


def made_by(name: str) -> Any:
    """What the factory ``package.module:callable`` returns."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError("expected MODULE:CALLABLE, such as my_package.layers:make_layer")
    factory = getattr(importlib.import_module(module), attribute)
    if not callable(factory):
        raise TypeError(f"expected a function that makes a layer; {attribute} is {factory!r}")
    return factory()


def in_one_line(error: Exception) -> str:
    """An error with the last line of the user's own code that led to it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    ours = Path(__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and ours not in file.parents and not {"torch", "importlib"} & set(file.parts):
            return f"{text} ({file.name}, line {frame.lineno})"
    return text


def problem_of(made: Any) -> dict[str, Any]:
    """The arguments of ``ti.diagnostics.check`` from what a factory returned."""
    from torchimplicit.diagnostics.check import LAYERS, layer_arguments

    if not isinstance(made, tuple) or len(made) < 2:
        raise TypeError("the factory must return (layer, *inputs) or (f, z0[, args[, kind[, keywords]]])")
    first, *rest = made
    if isinstance(first, LAYERS):
        return layer_arguments(first, *rest)
    names = ("z0", "args", "kind", "keywords")
    if len(rest) > len(names):
        raise TypeError("the factory returned more than (f, z0, args, kind, keywords)")
    given = dict(zip(names, rest))
    return {"f": first, **given.pop("keywords", {}), **given}


if __name__ == "__main__":
    main()
