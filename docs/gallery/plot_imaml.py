r"""
iMAML: learning to learn, by vmap over tasks
============================================

Few-shot learning: from ten points of a sine wave of unknown height and phase, guess the whole wave. Implicit MAML
(Rajeswaran, Finn, Kakade and Levine, 2019) adapts the weights :math:`z` of a network to each task, held near a common
prior :math:`\theta`,

.. math:: z^*(\theta) = \arg\min_z\; \mathcal{L}_{\text{train}}(z) + \tfrac{\lambda}{2}\|z - \theta\|^2 ,

and trains :math:`\theta` such that what is adapted does well on *new* points of the task. The inner problem is one
call, the tasks are ``torch.vmap``, and the outer gradient never sees how the inner minimum was found.
"""

import matplotlib.pyplot as plt
import torch
from torch.func import vmap

import torchimplicit as ti

torch.manual_seed(0)
width, shots, strength = 16, 10, 0.1

# %%
# A small network, its weights a dictionary
# -----------------------------------------

prior = {
    "w1": 2 * torch.randn(1, width, dtype=torch.float64),
    "b1": 3 * torch.randn(width, dtype=torch.float64),
    "w2": torch.randn(width, 1, dtype=torch.float64) / width**0.5,
}
prior = {name: weight.requires_grad_() for name, weight in prior.items()}


def network(z, x):
    return torch.tanh(x @ z["w1"] + z["b1"]) @ z["w2"]


def inner(z, x, y):
    distance = sum((z[name] - prior[name]).square().sum() for name in prior)
    return (network(z, x) - y).square().mean() + strength / 2 * distance


def adapt(x, y):
    """The weights for one task; ``prior`` is found by itself, as any tensor that ``inner`` uses."""
    return ti.minimize(inner, {name: weight.detach() for name, weight in prior.items()}, (x, y), rtol=1e-5).value


def outer_loss(tasks):
    x, y, x_new, y_new = tasks
    predicted = vmap(lambda x, y, x_new: network(adapt(x, y), x_new))(x, y, x_new)
    return (predicted - y_new).square().mean()


def draw(number):
    height = 0.5 + 1.5 * torch.rand(number, 1, 1, dtype=torch.float64)
    phase = torch.pi * torch.rand(number, 1, 1, dtype=torch.float64)
    x, x_new = 10 * torch.rand(2, number, shots, 1, dtype=torch.float64) - 5
    return x, height * torch.sin(x + phase), x_new, height * torch.sin(x_new + phase)


# %%
# The gradient is right
# ---------------------
# Along a random direction, against a difference of the outer loss.

tasks = draw(5)
direction = {name: torch.randn_like(weight) for name, weight in prior.items()}
gradient = torch.autograd.grad(outer_loss(tasks), list(prior.values()))
along = sum((g * d).sum() for g, d in zip(gradient, direction.values()))


def moved(h):
    with torch.no_grad():
        for name in prior:
            prior[name] += h * direction[name]
        loss = outer_loss(tasks)
        for name in prior:
            prior[name] -= h * direction[name]
    return loss


difference = (moved(1e-4) - moved(-1e-4)) / 2e-4
print(f"along a direction {along:.6f}, by differences {difference:.6f}")
torch.testing.assert_close(along, difference, rtol=1e-3, atol=1e-5)

# %%
# Meta-training
# -------------

test_tasks = draw(20)
with torch.no_grad():
    before = outer_loss(test_tasks).item()
    untrained = {name: weight.clone() for name, weight in prior.items()}
optimizer = torch.optim.Adam(prior.values(), lr=0.05)
losses = []
for _ in range(32):
    optimizer.zero_grad()
    loss = outer_loss(draw(8))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
with torch.no_grad():
    after = outer_loss(test_tasks).item()
print(
    f"error on twenty new tasks after adaptation: {before:.3f} with the random prior, {after:.3f} with the learned one"
)
assert after < before / 2

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.semilogy(losses)
left.set(xlabel="step", ylabel="outer loss of eight tasks", title="Meta-training")
x, y, x_new, y_new = (part[0] for part in test_tasks)
fine = torch.linspace(-5, 5, 200, dtype=torch.float64).unsqueeze(1)
with torch.no_grad():
    learned = network(adapt(x, y), fine)
    for name in prior:
        prior[name].copy_(untrained[name])
    random = network(adapt(x, y), fine)
right.plot(x, y, "ko", label="ten points")
right.plot(x_new, y_new, "kx", ms=4, label="points to predict")
right.plot(fine, random, "C1--", label="adapted from the random prior")
right.plot(fine, learned, "C0", label="adapted from the learned prior")
right.set(xlabel="$x$", title="A new task")
right.legend()
plt.show()
