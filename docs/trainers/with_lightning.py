"""Lightning trains a model with an implicit layer as it trains any other: python with_lightning.py FOLDER"""

import sys

import pytorch_lightning as pl
import torch
from model import Classifier, accuracy, digits
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from torchimplicit.interop.lightning import LogSolves


class Task(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Classifier()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        pixels, labels = batch
        loss = torch.nn.functional.cross_entropy(self.model(pixels), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


if __name__ == "__main__":
    pl.seed_everything(0)
    train, test = digits()
    task = Task()
    trainer = pl.Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=TensorBoardLogger(sys.argv[1]),
        callbacks=[LogSolves()],
        log_every_n_steps=10,
        enable_progress_bar=False,
    )
    trainer.fit(task, DataLoader(train, batch_size=64, shuffle=True))
    print(f"accuracy {accuracy(task.model, test):.3f}")
