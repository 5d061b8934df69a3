"""A progress bar for long solves."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor


class ProgressBar:
    """Shows the step and the residuals of a solve while it runs; give it as ``callback=``::

        with ti.diagnostics.ProgressBar() as bar:
            z, info = ti.root(g, z0, callback=bar)

    description : what to call the solve.
    max_steps : the step limit of the solve, if the bar is to fill up.
    console : a ``rich.console.Console``; by default the terminal.

    Raises ImportError, naming the extra to install, without ``rich``.
    """

    def __init__(self, description: str = "solving", max_steps: int | None = None, console: Any = None) -> None:
        try:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        except ImportError as error:
            raise ImportError("The progress bar needs rich: pip install 'torchimplicit[cli]'.") from error
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("step {task.completed}  {task.fields[seen]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task(description, total=max_steps, seen="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, step: int, z: Any, residual: Tensor) -> None:
        """``residual``: root-mean-square residuals after ``step`` steps, one per system."""
        seen = "no systems"
        if residual.numel():
            seen = f"residual {residual.max().item():.1e}"
            if residual.numel() > 1:
                seen += f" (median {residual.median().item():.1e})"
        self._progress.update(self._task, completed=step, seen=seen)
