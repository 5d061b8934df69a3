"""The Trainer of Hugging Face: log what the implicit layers of a model say of their solves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from torchimplicit.diagnostics import facts


class LogSolves(TrainerCallback):
    """Writes :func:`torchimplicit.diagnostics.facts` of the model to TensorBoard, every ``logging_steps`` steps.

    folder : of the event files; by default ``solves`` in the trainer's ``output_dir``.

    Example::

        Trainer(model, arguments, callbacks=[LogSolves()], ...).train()
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.is_world_process_zero:
            self._writer = SummaryWriter(str(self.folder or Path(args.output_dir) / "solves"))

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._writer is not None and state.global_step % max(1, int(args.logging_steps)) == 0:
            for name, value in facts(more["model"]).items():
                self._writer.add_scalar(name, value, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._writer is not None:
            self._writer.close()
