"""A convolutional deep equilibrium classifier for scikit-learn's bundled handwritten digits.

The features of an image are no recipe of layers but the fixed point z* = tanh(w ∗ z* + u) of one convolutional cell,
where u is what an encoder makes of the image: a network as deep as the solver needs it to be (Bai, Kolter & Koltun,
"Deep Equilibrium Models", 2019). It is trained with implicit gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

import torchimplicit as ti


class Digits(NamedTuple):
    """1,797 images of 8x8 pixels in [0, 1], shape (N, 1, 8, 8), and their classes (N,), split once and for all."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """The digits, a quarter of them (450) kept for the test; the split is stratified and never changes."""
    from sklearn.datasets import load_digits as bundled
    from sklearn.model_selection import train_test_split

    data = bundled()
    train, test = train_test_split(range(len(data.target)), test_size=0.25, random_state=0, stratify=data.target)
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    return Digits(images[train], labels[train], images[test], labels[test])


class Cell(nn.Module):
    """f(z, u) = tanh(w ∗ z + b + u), for z and u of shape (batch, channels, height, width)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        # Small enough to contract before anything is learned: 9 * channels inputs meet in every unit.
        nn.init.normal_(self.mix.weight, std=0.5 / (9 * channels) ** 0.5)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(self.mix(z) + u)


class Classifier(nn.Module):
    """Images (batch, 1, 8, 8) -> logits (batch, 10): an encoder, one implicit layer, a linear head."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
        )
        # Three digits are plenty for a stochastic gradient; the measurements afterwards ask for all of them.
        self.layer = ti.nn.FixedPoint(Cell(channels), solver="anderson", rtol=1e-3, max_steps=60)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * channels, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(self.encoder(images)))

    def solver_steps(self, images: Tensor) -> list[int]:
        """How many steps of Anderson's method the fixed point of each image takes, to five digits."""
        self.eval()
        with torch.no_grad():
            u = self.encoder(images)
            cell = self.layer.cell
            _, info = ti.fixed_point(cell, torch.zeros_like(u), (u,), solver="anderson", batch_ndim=1, rtol=1e-5)
        return info.steps.tolist()


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images came to."""

    loss: float
    accuracy: float
    """on the test images, after the epoch"""
    forward_steps: float
    """mean over samples and batches"""
    backward_steps: float
    seconds: float
    """since the beginning of the training"""


@dataclass(frozen=True)
class Trained:
    model: Classifier
    digits: Digits
    history: list[Epoch]

    @property
    def accuracy(self) -> float:
        return self.history[-1].accuracy

    @property
    def seconds(self) -> float:
        return self.history[-1].seconds


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def train(
    epochs: int,
    seed: int = 0,
    batch: int = 64,
    learning_rate: float = 5e-3,
    on_batch: Callable[[int, int, float, float, float], None] = lambda done, total, loss, forward, backward: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Train on the digits with AdamW, a one-cycle learning rate and implicit gradients.

    ``on_batch(done, total, loss, forward_steps, backward_steps)`` and ``on_epoch(epoch)`` are for progress bars.
    """
    torch.manual_seed(seed)
    digits = load_digits()
    model = Classifier()
    # The decay of the cell's weights is what keeps it contracting: with less of it some image ends up
    # without a fixed point that the solver can find.
    mixing = [parameter for name, parameter in model.named_parameters() if name == "layer.cell.mix.weight"]
    others = [parameter for name, parameter in model.named_parameters() if name != "layer.cell.mix.weight"]
    optimizer = torch.optim.AdamW(
        [{"params": mixing, "weight_decay": 3.0}, {"params": others, "weight_decay": 1e-2}], learning_rate
    )
    batches = len(digits.train_labels) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * batches)
    history: list[Epoch] = []
    start = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        sums = torch.zeros(3)
        shuffled = torch.randperm(len(digits.train_labels))
        for i, chosen in enumerate(shuffled[: batches * batch].split(batch)):
            logits = model(digits.train_images[chosen])
            loss = nn.functional.cross_entropy(logits, digits.train_labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            info = model.layer.last_info
            assert info is not None
            assert info.adjoint is not None
            seen = (loss.item(), info.steps.float().mean().item(), info.adjoint.steps.float().mean().item())
            sums += torch.tensor(seen)
            on_batch(epoch * batches + i + 1, epochs * batches, *seen)
        mean_loss, forward_steps, backward_steps = (sums / batches).tolist()
        test = accuracy(model, digits.test_images, digits.test_labels)
        history.append(Epoch(mean_loss, test, forward_steps, backward_steps, time.perf_counter() - start))
        on_epoch(history[-1])
    return Trained(model, digits, history)
