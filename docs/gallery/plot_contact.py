r"""
Blocks that fall on each other, and the push that stacks them
=============================================================

Bodies in contact press on each other only where they touch, and never pull: with :math:`f` the contact forces and
:math:`g(f)` the gaps that they leave, :math:`f \ge 0`, :math:`g(f) \ge 0` and :math:`f_i\, g_i(f) = 0`. That is a
complementarity problem, and every time step of a simulation is one: a layer whose derivative is that of the bodies that touch.
"""

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.set_default_dtype(torch.float64)
blocks, height, gravity, dt = 4, 1.0, 9.81, 0.02
mass = torch.tensor([2.0, 1.0, 0.5, 1.5])
# Gap i is that between block i and what is below it: the floor, or block i - 1.
G = torch.eye(blocks) - torch.diag(torch.ones(blocks - 1), -1)


def gaps(impulse, x, v):
    """After a step in which the contacts have passed on an impulse each."""
    after = v - dt * gravity + (G.T @ impulse) / mass
    return G @ (x + dt * after) - height


def step(x, v):
    start = torch.zeros(blocks)
    impulse, info = ti.complementarity(gaps, start, (x, v), rtol=1e-12)
    v = v - dt * gravity + (G.T @ impulse) / mass
    return x + dt * v, v, impulse, info


# %%
# The fall
# --------

x, v = torch.tensor([1.4, 3.2, 4.6, 7.0]), torch.zeros(blocks)
path, forces = [x], []
for _ in range(60):
    x, v, impulse, info = step(x, v)
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
# How does the final height of the top block depend on a push to it early on? The derivative goes through all steps, and in each
# through the bodies that touch: a backward never sees how the forces were found. It agrees with differences.


def top(push):
    x, v = torch.tensor([1.4, 3.2, 4.6, 7.0]), torch.zeros(blocks)
    v = v + push
    for _ in range(20):
        x, v, _, _ = step(x, v)
    return x[-1]


push = torch.zeros(blocks, requires_grad=True)
(gradient,) = torch.autograd.grad(top(push), push)
eye, small = torch.eye(blocks), 1e-6
differences = torch.stack([(top(small * e) - top(-small * e)) / (2 * small) for e in eye])
print("d(top) / d(push):", [round(number, 4) for number in gradient.tolist()])
torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-8)
assert gradient[0] == 0 or abs(gradient[0]) < gradient[3]

plt.show()
