"""The Trainer of Hugging Face trains a model with an implicit layer as it trains any other: python with_hugging_face.py FOLDER"""

import sys

import torch
from model import Classifier, accuracy, digits
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from torchimplicit.interop.hugging_face import LogSolves


class WithLoss(nn.Module):
    """What the Trainer asks of a model: the loss first."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Classifier()

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    pixels, labels = zip(*rows)
    return {"pixels": torch.stack(pixels), "labels": torch.stack(labels)}


if __name__ == "__main__":
    train, test = digits()
    arguments = TrainingArguments(
        output_dir=sys.argv[1],
        num_train_epochs=8,
        per_device_train_batch_size=64,
        learning_rate=5e-3,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=0,
    )
    torch.manual_seed(0)
    model = WithLoss()
    Trainer(model, arguments, train_dataset=train, data_collator=collate, callbacks=[LogSolves()]).train()
    print(f"accuracy {accuracy(model.model, test):.3f}")
