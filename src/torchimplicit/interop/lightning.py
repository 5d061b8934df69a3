"""Lightning: log what the implicit layers of a model say of their solves."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback

from torchimplicit.diagnostics import facts


class LogSolves(Callback):
    """Logs :func:`torchimplicit.diagnostics.facts` of the model to the trainer's loggers, every ``log_every_n_steps`` steps.

    Example::

        Trainer(callbacks=[LogSolves()], logger=TensorBoardLogger("runs")).fit(model, data)
    """

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:
            for logger in trainer.loggers:
                logger.log_metrics(facts(pl_module), step=trainer.global_step)
