r"""
A deep equilibrium classifier
=============================

A deep network with one layer: its features are no recipe of layers but the fixed point of one cell, :math:`z^* =
\tanh(W z^* + U x + b)` (Bai, Kolter and Koltun, 2019). The solver decides how deep it is, for each image on its own;
the memory of a training step is that of one evaluation.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import torchimplicit as ti

torch.manual_seed(0)

# %%
# The model
# ---------
# ``ti.nn.FixedPoint`` makes a layer of any cell ``(z, x) -> z``. The first dimension is the batch. With :math:`\|W\|_2
# = 0.9` the cell is a contraction whatever it learns, so there always is a fixed point, and only one. What does not
# depend on ``z``, such as that scaling, is computed once per solve.


class Cell(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Parameter(torch.randn(width, width) / width)

    def forward(self, z, injected):
        W = 0.9 * self.inner / torch.linalg.matrix_norm(self.inner, 2)
        return torch.tanh(z @ W.T + injected)


class Classifier(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.encoder = nn.Linear(64, width)
        self.layer = ti.nn.FixedPoint(Cell(width), rtol=1e-3)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        return self.head(self.layer(self.encoder(images)))


# %%
# Training
# --------
# Nothing about the loop is special. ``last_info`` tells what the solver did.

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
shuffled = torch.randperm(len(labels))
test, train = shuffled[:450], shuffled[450:]

model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
steps, losses = [], []
for _ in range(12):
    for batch in train[torch.randperm(len(train))].split(128):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        steps.append(model.layer.last_info.steps.float().mean().item())
print(model.layer.last_info.summary())

model.eval()
with torch.no_grad():
    logits = model(images[test])
accuracy = (logits.argmax(1) == labels[test]).float().mean().item()
print(f"test accuracy {accuracy:.3f}")
assert accuracy > 0.95

# %%
# The gradient is right
# ---------------------
# In float64, with a tight tolerance, against a central difference of the loss along a random direction of all weights.

exact = Classifier().double()
exact.load_state_dict(model.state_dict())
exact.layer.options["rtol"] = 1e-11
weights = [parameter.detach().clone() for parameter in exact.parameters()]
directions = [torch.randn_like(weight) for weight in weights]


def loss_at(h):
    with torch.no_grad():
        for parameter, weight, direction in zip(exact.parameters(), weights, directions):
            parameter.copy_(weight + h * direction)
    return nn.functional.cross_entropy(exact(images[test].double()), labels[test])


gradients = torch.autograd.grad(loss_at(0.0), list(exact.parameters()))
along = sum((g * d).sum() for g, d in zip(gradients, directions))
with torch.no_grad():
    difference = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
print(f"along a direction {along:.8f}, by differences {difference:.8f}")
torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-9)

# %%
# How deep is it?
# ---------------
# With a tighter tolerance the number of steps differs from image to image. It can be asked for at any time, for the
# depth is no part of the model.

with torch.no_grad():
    injected = model.encoder(images[test])
    _, info = ti.fixed_point(
        model.layer.cell,
        torch.zeros_like(injected),
        (injected,),
        batch_ndim=1,
        rtol=1e-6,
        solver="picard",
        max_steps=1000,
    )
assert info.converged.all()

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
left.semilogy(losses, "C0")
left.set(xlabel="step", ylabel="loss", title=f"Training; test accuracy {accuracy:.1%}")
twin = left.twinx()
twin.plot(steps, "C1")
twin.set_ylabel("mean solver steps", color="C1")
middle.hist(info.steps, bins=30)
middle.set(xlabel="plain steps to six digits", ylabel="test images", title="Depth, image by image")
order = info.steps.argsort()
shown = torch.cat([order[:8], order[-8:]])
tiles = digits.images[test[shown]].reshape(2, 8, 8, 8).transpose(0, 2, 1, 3).reshape(16, 64)
right.imshow(tiles, cmap="gray_r")
right.set(xticks=[], yticks=[4, 12], yticklabels=["fewest\nsteps", "most"], title="The easiest and the hardest")
plt.show()
