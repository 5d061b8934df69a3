r"""
Blocks that fall on each other
==============================

Bodies in contact press on each other only where they touch, and never pull: with :math:`f` the contact forces and
:math:`g(f)` the gaps that they leave, :math:`f \ge 0`, :math:`g(f) \ge 0` and :math:`f_i\, g_i(f) = 0`. That is a
complementarity problem, and every time step of a simulation is one: a layer whose derivative is that of the bodies that touch.
"""

import warnings

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.set_default_dtype(torch.float64)
blocks, height, gravity, dt = 4, 1.0, 9.81, 0.02
mass = torch.tensor([2.0, 1.0, 0.5, 1.5])
# Gap i is that between block i and what is below it: the floor, or block i - 1.
G = torch.eye(blocks) - torch.diag(torch.ones(blocks - 1), -1)


def gaps(impulse, x, v, mass):
    """After a step in which the contacts have passed on an impulse each."""
    after = v - dt * gravity + (G.T @ impulse) / mass
    return G @ (x + dt * after) - height


def step(x, v, mass):
    start = torch.zeros(blocks)
    impulse, info = ti.complementarity(gaps, start, (x, v, mass), rtol=1e-12)
    v = v - dt * gravity + (G.T @ impulse) / mass
    return x + dt * v, v, impulse, info


# %%
# The fall
# --------

x, v = torch.tensor([1.4, 3.2, 4.6, 7.0]), torch.zeros(blocks)
path, forces = [x], []
for _ in range(60):
    x, v, impulse, info = step(x, v, mass)
    assert info.converged
    path.append(x)
    forces.append(impulse / dt)
path, forces = torch.stack(path), torch.stack(forces)

# At rest each contact bears what stands on it, and the blocks lie one on the other, exactly.
carried = gravity * mass.flip(0).cumsum(0).flip(0)
torch.testing.assert_close(forces[-1], carried)
torch.testing.assert_close(x, height * torch.arange(1.0, blocks + 1))
assert (path @ G.T - height).min() > -1e-12  # nothing ever went through anything

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
t = dt * torch.arange(len(path))
left.plot(t, path)
left.set(xlabel="time", ylabel="top of each block")
right.plot(t[1:], forces.clamp(max=3 * carried.max()))
right.set(xlabel="time", ylabel="force in each contact")
figure.tight_layout()

# %%
# Through the contacts
# --------------------
# Which masses does a contact bear? The derivative of the forces at rest says so: each bears what stands on it, and nothing else.

bears = torch.func.jacrev(lambda mass: step(x, v, mass)[2] / dt)(mass)
print(bears)
torch.testing.assert_close(bears, gravity * torch.ones(blocks, blocks).triu())

# %%
# Two blocks that have met in the air fall side by side: they touch, and nothing presses them together. Whether they push each other
# depends on which of them is held back, so there are two derivatives, one to each side. A backward says so.

x, v = torch.tensor([1.0, 2.5, 3.5, 7.0]), torch.tensor([0.0, -1.0, -1.0, 0.0])
push = torch.zeros(blocks, requires_grad=True)
x, v, impulse, info = step(x, v + push, mass)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    x[1].backward()
print(told[0].message)
assert "degenerate" in str(told[0].message)

plt.show()
