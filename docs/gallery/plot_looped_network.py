r"""
A looped network: one step, a few steps, all steps, or the exact gradient
=========================================================================

Looped and recurrent-depth networks apply one block again and again. How far back should the gradient go? Through the
last loop only, a few loops, all of them, or to the fixed point itself? The network stays the same, and so does its
value; only ``adjoint=`` changes. This example measures what that costs in accuracy, and how the gradients differ.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import torchimplicit as ti

# %%
# A task that needs the loop
# --------------------------
# Each of the eight rows of a handwritten digit has a state of 24 numbers, and in every loop a row hears of the row
# above it alone. The class is read off the last row: what the first row shows arrives there after seven loops.


class Block(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.own = nn.Linear(width, width, bias=False)
        self.above, self.pixels = nn.Linear(width, width), nn.Linear(8, width)
        nn.init.orthogonal_(self.above.weight, gain=0.9)

    def forward(self, z, image):  # (batch, 8, width), (batch, 8, 8)
        above = nn.functional.pad(z[:, :-1], (0, 0, 1, 0))
        own = self.own.weight / self.own.weight.norm()  # a contraction, whatever is learned
        return torch.tanh(z @ own + self.above(above) + self.pixels(image))


class Looped(nn.Module):
    def __init__(self, adjoint, width=24):
        super().__init__()
        self.loop = ti.nn.FixedPoint(
            Block(width),
            init=lambda image: image.new_zeros(len(image), 8, width),
            solver="picard",
            adjoint=adjoint,
            rtol=1e-4,
            max_steps=100,
        )
        self.head = nn.Linear(width, 10)

    def forward(self, image):
        return self.head(self.loop(image)[:, -1])


data = load_digits()
images = torch.tensor(data.images, dtype=torch.float32) / 8 - 1
labels = torch.tensor(data.target)
shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
test, train = shuffled[:400], shuffled[400:]

adjoints = {
    "one step": ti.OneStep(),
    "four steps": ti.Phantom(4, damping=1.0),
    "all steps": ti.Unrolled(),
    "exact": ti.Implicit(),
}

# %%
# The gradients, compared
# -----------------------
# Of one model, on one batch: the cosine with the exact gradient, over all weights of the block.


def gradient(adjoint, weights, dtype=torch.float32):
    model = Looped(adjoint).to(dtype)
    model.load_state_dict(weights)
    loss = nn.functional.cross_entropy(model(images[train[:200]].to(dtype)), labels[train[:200]])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.loop.parameters())])


def cosines(weights):
    exact = gradient(adjoints["exact"], weights)
    return [torch.cosine_similarity(gradient(each, weights), exact, dim=0).item() for each in adjoints.values()]


# %%
# Training with each of them
# --------------------------
# The same start, the same batches, the same optimiser.


def train_with(adjoint, epochs=5):
    torch.manual_seed(0)
    model = Looped(adjoint)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.1)
    accuracies, compared = [], []
    for _ in range(epochs):
        compared.append(cosines(model.state_dict()) if adjoint is adjoints["exact"] else None)
        for batch in train[torch.randperm(len(train))].split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracies.append((model(images[test]).argmax(1) == labels[test]).float().mean().item())
    return accuracies, compared, model


trained = {name: train_with(adjoint) for name, adjoint in adjoints.items()}
compared = torch.tensor(trained["exact"][1])
for i, name in enumerate(adjoints):
    print(f"{name:>10}: accuracy {trained[name][0][-1]:.3f}, cosine to the exact gradient {compared[:, i].mean():.3f}")

# %%
# What must hold: backpropagation through all steps and the implicit gradient are the same gradient, at very different
# cost in memory; one step sees no row but the last; and the exact gradient is the derivative, by differences in
# float64.

assert compared[:, 2].min() > 0.999
assert compared[:, 0].max() < 0.9
assert trained["one step"][0][-1] + 0.1 < trained["exact"][0][-1]

weights = trained["exact"][2].state_dict()
model = Looped(ti.Implicit()).double()
model.load_state_dict(weights)
model.loop.options["rtol"] = 1e-12
parameter, direction = model.loop.cell.above.weight, torch.randn(24, 24, dtype=torch.float64)


def loss_at(h):
    with torch.no_grad():
        parameter.copy_(weights["loop.cell.above.weight"] + h * direction)
    return nn.functional.cross_entropy(model(images[train[:200]].double()), labels[train[:200]])


(exact,) = torch.autograd.grad(loss_at(0.0), parameter)
difference = ((loss_at(1e-5) - loss_at(-1e-5)) / 2e-5).detach()
torch.testing.assert_close((exact * direction).sum(), difference, rtol=1e-5, atol=1e-8)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for i, name in enumerate(adjoints):
    style = "--" if name == "exact" else "-"
    left.plot(trained[name][0], style, label=name)
    right.plot(compared[:, i], style, label=name)
left.set(xlabel="epoch", ylabel="test accuracy", title="Trained with each gradient")
right.set(xlabel="epoch", ylabel="cosine", title="Cosine to the exact gradient")
left.legend()
plt.show()
