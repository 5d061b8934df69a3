r"""
A recurrence, all times at once
===============================

A recurrent network is computed one time after the other: :math:`z_t = f(z_{t-1}, x_t)`. But its states are also the root
of *one* system, :math:`z_t - f(z_{t-1}, x_t) = 0` for all :math:`t`, and Newton's method solves that in a handful of
steps, each of which evaluates :math:`f` at all times at once (DEER: Lim, Zhu, Selfridge and Kasim, *Parallelizing
non-linear sequential models over the sequence length*, ICLR 2024).
"""

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
times, width = 1000, 4
cell = torch.nn.GRUCell(2, width)
first = torch.zeros(1, width)
t = torch.linspace(0, 40, times)
x = torch.stack([t.sin(), (0.37 * t**1.3).cos()], -1).requires_grad_()

# %%
# As a root
# ---------
# Nothing is said about sequences: that the Jacobian has blocks on its diagonal and below it alone is found from one
# evaluation.


def equations(z, x):
    before = torch.cat([first, z[:-1]])
    return z - cell(x, before)


path = []
z, info = ti.root(equations, torch.zeros(times, width), (x,), rtol=1e-12, callback=lambda step, z, r: path.append(z))
print(info)
print(info.linear)

# %%
# The same by the loop over time, and the same gradient, through the transposed system in place of backpropagation
# through time.

state, states = first, []
for xt in x:
    state = cell(xt.unsqueeze(0), state)
    states.append(state)
loop = torch.cat(states)
torch.testing.assert_close(z, loop, rtol=1e-9, atol=1e-9)

inputs = (x, *cell.parameters())
weights = torch.randn_like(loop)
for here, there in zip(
    torch.autograd.grad((weights * z).sum(), inputs), torch.autograd.grad((weights * loop).sum(), inputs)
):
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
assert info.steps < 12  # evaluations of all times, in place of a thousand of one
print(f"{int(info.steps)} steps for {times} times")

# %%
# Where it goes wrong
# -------------------
# A recurrence that forgets its start is solved everywhere at once. One that amplifies whatever is put in is not: the
# logistic map in its chaotic range has lost all digits after some seventy times, in any arithmetic, and the layer says
# that it found nothing.

_, chaos = ti.root(
    lambda z: z - 3.9 * torch.cat([torch.tensor([0.3]), z[:-1]]) * (1 - torch.cat([torch.tensor([0.3]), z[:-1]])),
    torch.full((300,), 0.5),
    max_steps=40,
    on_failure="ignore",
)
print(chaos)
assert not chaos.converged

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(t, z.detach(), lw=1)
left.set(xlabel="time", title="The states")
for step, at in enumerate(path):
    right.semilogy(t, (at - loop.detach()).norm(dim=1) + 1e-17, lw=0.8, label=f"step {step}")
right.set(xlabel="time", ylabel="error", title="Newton's method, at all times at once")
right.legend(fontsize=7)
plt.show()
