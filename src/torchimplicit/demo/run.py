"""The demo from beginning to end: train, measure, print the tables, write the report."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from torchimplicit.demo import claims, layers
from torchimplicit.demo.instruments import quiet_machine
from torchimplicit.demo.measurements import Measurements
from torchimplicit.demo.report import html
from torchimplicit.demo.tables import all_tables, for_terminal
from torchimplicit.demo.train import Epoch, Trained, train

STEPS = (5, 10, 20, 50, 100, 200)
T = TypeVar("T")


def collect(quick: bool, seed: int, console: Console) -> Measurements:
    """Train and measure, with a live progress bar."""
    began = time.perf_counter()
    trained = train_with_progress(5 if quick else 16, seed, console)
    images, labels = trained.digits.test_images[:64], trained.digits.test_labels[:64]
    repeats = 3 if quick else 5

    def equilibrium(dtype: torch.dtype) -> layers.Layer:
        return layers.equilibrium(trained.model, images, labels, dtype)

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("measuring", total=9)

        def stage(what: str, measurement: Callable[[], T]) -> T:
            progress.update(task, description=f"measuring: {what}")
            result = measurement()
            progress.advance(task)
            return result

        return Measurements(
            trained=trained,
            solver_steps=trained.model.solver_steps(trained.digits.test_images),
            residuals=stage(
                "forward residuals",
                lambda: {
                    "plain steps": claims.residuals(equilibrium(torch.float32), "picard", 60),
                    "Anderson": claims.residuals(equilibrium(torch.float32), "anderson", 60),
                    "Newton": claims.residuals(layers.newton(torch.float64), "newton", 8),
                },
            ),
            equilibrium=stage("the trained layer", lambda: claims.side_by_side(equilibrium, "picard", STEPS, repeats)),
            newton=stage("the Newton layer", lambda: claims.side_by_side(layers.newton, "newton", STEPS, repeats)),
            vanishing=stage("vanishing gradients", lambda: claims.long_products(0.8, STEPS)),
            exploding=stage("exploding gradients", lambda: claims.long_products(2.5, STEPS)),
            two_terms=claims.two_terms(),
            fold=stage("a singular Jacobian", claims.fold),
            backward_solvers=stage("backward solvers", lambda: claims.backward_solvers(equilibrium)),
            reuse=stage("factors used twice", lambda: claims.reuse(repeats)),
            root_finders=stage("root finders", claims.root_finders),
            seed=seed,
            quick=quick,
            seconds=time.perf_counter() - began,
            machine=f"{platform.machine()}, one thread, Python {platform.python_version()}, "
            f"PyTorch {torch.__version__}",
        )


def train_with_progress(epochs: int, seed: int, console: Console) -> Trained:
    """``train`` behind a bar that shows loss, accuracy and how many steps the solves take, forward and backward."""
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[seen]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=None, seen="")
        test = "–"

        def on_batch(done: int, total: int, loss: float, forward: float, backward: float) -> None:
            seen = f"loss {loss:.3f}, test {test}, steps {forward:.1f} + {backward:.1f}"
            progress.update(task, completed=done, total=total, seen=seen)

        def on_epoch(epoch: Epoch) -> None:
            nonlocal test
            test = f"{epoch.accuracy:.1%}"

        return train(epochs, seed, on_batch=on_batch, on_epoch=on_epoch)


def run(quick: bool, output: Path, seed: int, console: Console) -> Measurements:
    """The whole demo. The report is written to ``output``."""

    with quiet_machine():
        measurements = collect(quick, seed, console)
    for table in all_tables(measurements):
        console.print(for_terminal(table))
    console.print(f"At x = 0 it is said: {measurements.fold[-1].said}\n", highlight=False)
    output.write_text(html(measurements), encoding="utf-8")
    accuracy = measurements.trained.accuracy
    console.print(f"test accuracy [bold]{accuracy:.2%}[/bold], {measurements.seconds:.0f} s, report: {output}")
    return measurements
