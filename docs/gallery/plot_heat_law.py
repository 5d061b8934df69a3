r"""
A law of heat, learned through implicit steps
=============================================

How a material conducts may depend on how hot it is, :math:`u_t = (a(u)\, u_x)_x`. With an explicit scheme the steps in
time would have to be tiny; each implicit step is a root of its own. Here the law :math:`a` is a small network, the steps
are layers, and the network is trained end to end on nothing but pictures of the rod at a few times.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import torchimplicit as ti

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
n, dt, steps = 60, 0.015, 4
dx = 1 / (n + 1)
x = torch.linspace(0, 1, n + 2)[1:-1]

# %%
# An implicit step
# ----------------
# The Jacobian has three diagonals. They are found at the first step, and a ``Memory`` keeps them for all others, with the
# factors of a Jacobian as long as these serve.

memory = ti.linear.Memory()


def step(u, law):
    def balance(new, old):
        padded = nn.functional.pad(new, (1, 1))
        flux = law((padded[..., 1:] + padded[..., :-1]) / 2) * torch.diff(padded, dim=-1) / dx
        return new - old - dt * torch.diff(flux, dim=-1) / dx

    return ti.root(balance, u.detach(), (u,), batch_ndim=1, sparsity=memory, rtol=1e-10).value


def trajectory(u, law):
    path = [u]
    for _ in range(steps):
        path.append(step(path[-1], law))
    return torch.stack(path)


# %%
# Against a known solution: where :math:`a` is constant a sine decays by the same factor in each step.

wave = torch.sin(torch.pi * x).unsqueeze(0)
rate = 4 / dx**2 * torch.sin(torch.tensor(torch.pi * dx / 2)) ** 2
torch.testing.assert_close(trajectory(wave, torch.ones_like)[-1], wave * (1 + dt * rate) ** -steps, rtol=1e-8, atol=0)

# %%
# Pictures of six rods, made with a law that the network is not told.


def true_law(u):
    return 0.2 + u**2


starts = torch.stack([k * torch.sin(torch.pi * x) ** p for k in (0.6, 1.0, 1.4) for p in (1, 4)])
with torch.no_grad():
    pictures = trajectory(starts, true_law)

# %%
# Training
# --------


class Law(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1), nn.Softplus())

    def forward(self, u):
        return self.net(u.unsqueeze(-1)).squeeze(-1)


law = Law()


def loss_of():
    return (trajectory(starts, law) - pictures).square().mean()


# %%
# The gradient through all the steps, along a random direction of the weights, by differences:

direction = [torch.randn_like(p) for p in law.parameters()]
gradient = torch.autograd.grad(loss_of(), list(law.parameters()))
along = sum((g * d).sum() for g, d in zip(gradient, direction))


def moved(h):
    with torch.no_grad():
        for p, d in zip(law.parameters(), direction):
            p += h * d
        loss = loss_of()
        for p, d in zip(law.parameters(), direction):
            p -= h * d
    return loss


difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
print(f"along a direction {along:.8f}, by differences {difference:.8f}")
torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-10)

optimizer = torch.optim.Adam(law.parameters(), lr=0.05)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
losses = []
for _ in range(100):
    optimizer.zero_grad()
    loss = loss_of()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
print(memory)
print(f"{memory.setups} factorisations for {len(losses) * steps} steps in time, of six rods each, and as many backward")

u = torch.linspace(0, 1, 100)
with torch.no_grad():
    learned = law(u)
error = (learned - true_law(u)).abs().max()
print(f"largest error of the law {error:.3f}")
assert error < 0.15
assert losses[-1] < losses[0] / 100

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
left.plot(x, pictures[:, -1].T)
left.set(xlabel="$x$", ylabel="$u$", title="One rod at five times")
middle.semilogy(losses)
middle.set(xlabel="step of training", ylabel="loss")
right.plot(u, true_law(u), "k", label="the law")
right.plot(u, learned, "C1--", label="learned")
right.set(xlabel="$u$", ylabel="$a(u)$", title="How it conducts")
right.legend()
plt.show()
