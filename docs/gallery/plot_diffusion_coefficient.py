r"""
Seeing inside: a diffusion coefficient from a few hundred sensors
=================================================================

How well a material conducts is a field :math:`a(x, y)` that nobody can measure inside. The temperature can be measured,
here and there, and it follows from the field, :math:`-\nabla\cdot(a \nabla u) = f`. The solver of this equation is a
layer, and so the field is found as the weights of a network are: by its gradient.
"""

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
m = 32
line = torch.linspace(0, 1, m + 2)[1:-1]
X, Y = torch.meshgrid(line, line, indexing="xy")

# %%
# The equation
# ------------
# Finite volumes; u = 0 at the border. Between two cells the harmonic mean of their coefficients conducts.


def flux_balance(u, log_a, source):
    a = torch.nn.functional.pad(log_a.exp()[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    u = torch.nn.functional.pad(u, (1, 1, 1, 1))
    total = -source / (m + 1) ** 2
    inside = (slice(1, -1), slice(1, -1))
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        a_there, u_there = (torch.roll(field, shift, (0, 1))[inside] for field in (a, u))
        total = total + 2 / (1 / a[inside] + 1 / a_there) * (u[inside] - u_there)
    return total


# %%
# The Jacobian's pattern is found once, and factors of one matrix serve for many similar ones: a ``Memory`` keeps them
# from call to call.

memory = ti.linear.Memory()
source = torch.ones(m, m)


def temperature(log_a):
    return ti.root(flux_balance, torch.zeros(m, m), (log_a, source), sparsity=memory, rtol=1e-10).value


# %%
# Against a known solution: with :math:`a = 1` and one mode of a sine as the source, the temperature is that mode.

mode = torch.sin(torch.pi * X) * torch.sin(2 * torch.pi * Y)
source = 5 * torch.pi**2 * mode
assert (temperature(torch.zeros(m, m)) - mode).abs().max() < 0.02  # the error of the grid

# %%
# The measurement
# ---------------
# Two blobs, one that conducts well and one that does not; 300 sensors with an error of some tenths of a per cent.

source = 10 * torch.ones(m, m)
truth = 1.2 * torch.exp(-((X - 0.3) ** 2 + (Y - 0.35) ** 2) / 0.02) - torch.exp(
    -((X - 0.7) ** 2 + (Y - 0.6) ** 2) / 0.02
)
sensors = torch.randperm(m * m)[:300]
with torch.no_grad():
    exact = temperature(truth).flatten()[sensors]
noise = 0.002 * exact.abs().max()
measured = exact + noise * torch.randn_like(exact)


def loss_of(log_a):
    misfit = (temperature(log_a).flatten()[sensors] - measured) / noise
    rough = torch.diff(log_a, dim=0).square().sum() + torch.diff(log_a, dim=1).square().sum()
    return 0.5 * misfit.square().sum() + 15 * rough


# %%
# The gradient with respect to all 1,024 numbers costs one more linear solve. Along a random direction, by differences:

start, direction = 0.3 * torch.randn(m, m), torch.randn(m, m)
start.requires_grad_()
(gradient,) = torch.autograd.grad(loss_of(start), start)
with torch.no_grad():
    difference = (loss_of(start + 1e-5 * direction) - loss_of(start - 1e-5 * direction)) / 2e-5
torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=0)

# %%
# The field
# ---------

log_a = torch.zeros(m, m, requires_grad=True)
optimizer = torch.optim.LBFGS([log_a], max_iter=40, history_size=20, line_search_fn="strong_wolfe")
losses = []


def closure():
    optimizer.zero_grad()
    loss = loss_of(log_a)
    loss.backward()
    losses.append(loss.item())
    return loss


optimizer.step(closure)
found = log_a.detach()
with torch.no_grad():
    misfit = ((temperature(found).flatten()[sensors] - measured) / noise).square().mean().sqrt()
error = (found - truth).norm() / truth.norm()
print(f"{len(losses)} gradients, {memory.setups} factorisations; misfit {misfit:.2f} of the noise, error {error:.2f}")
assert 0.5 < misfit < 1.5  # the measurement is explained, and its noise is not
assert error < 0.5
assert torch.corrcoef(torch.stack([found.flatten(), truth.flatten()]))[0, 1] > 0.9

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for axis, field, title in ((axes[0], truth, "log a, the truth"), (axes[1], found, "log a, as found")):
    colours = axis.pcolormesh(X, Y, field, cmap="RdBu_r", vmin=-1.2, vmax=1.2)
    axis.plot(X.flatten()[sensors], Y.flatten()[sensors], "k.", ms=1)
    axis.set(title=title, aspect="equal")
figure.colorbar(colours, ax=axes[:2])
axes[2].semilogy(losses)
axes[2].set(xlabel="gradients", ylabel="loss")
plt.show()
