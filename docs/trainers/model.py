"""A classifier around one implicit layer, and data that scikit-learn ships. Nothing in it knows of a trainer."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import torchimplicit as ti


class Cell(nn.Module):
    """tanh(W z + b + u), where W is kept a contraction: its norm does not depend on z, and is computed once per solve."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        norm = torch.linalg.matrix_norm(self.mix.weight, 2)
        weight = self.mix.weight * (0.95 / norm.clamp_min(0.95))
        return torch.tanh(nn.functional.linear(z, weight, self.mix.bias) + u)


class Classifier(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, width)
        self.equilibrium = ti.nn.FixedPoint(Cell(width))
        self.head = nn.Linear(width, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.equilibrium(self.encoder(pixels)))


def digits() -> tuple[TensorDataset, TensorDataset]:
    """To train with, and to test with: 8 × 8 pixels, ten classes."""
    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    data = TensorDataset((pixels / 16).float(), labels)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    train, test = order[:1400], order[1400:]
    return TensorDataset(*data[train]), TensorDataset(*data[test])


def accuracy(model: Classifier, data: TensorDataset) -> float:
    pixels, labels = data.tensors
    with torch.no_grad():
        return (model(pixels).argmax(-1) == labels).float().mean().item()
