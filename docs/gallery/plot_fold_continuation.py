r"""
A fold, and the other solution behind it
========================================

Gas that reacts and heats itself: Bratu's equation

.. math:: u'' + \lambda e^{u} = 0, \qquad u(0) = u(1) = 0

has two solutions for small :math:`\lambda`, one at the fold :math:`\lambda^* = 3.5138\ldots`, and none beyond, where
the gas explodes. No start near the cold solution leads to the hot one, but the branch does: continuation follows it
round the fold.
"""

import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
import torch

import torchimplicit as ti

# %%
# The equation as g(z, s) = 0
# ---------------------------
# Chebyshev collocation: the unknowns are the values at 19 points, the second derivative is a matrix, exact for
# polynomials. ``s`` is :math:`\lambda`.

n = 20
t = torch.cos(torch.pi * torch.arange(n + 1, dtype=torch.float64) / n)
c = torch.ones(n + 1, dtype=torch.float64)
c[[0, n]] = 2
c[1::2] *= -1
D = (c.outer(1 / c)) / (t[:, None] - t[None, :] + torch.eye(n + 1))
D = 2 * (D - D.sum(1).diag())  # d/dx on [0, 1], where x = (t + 1) / 2
D2 = (D @ D)[1:-1, 1:-1]
middle = n // 2 - 1  # x = 1/2


def bratu(u, s):
    return D2 @ u + s * torch.exp(u)


# %%
# Round the fold
# --------------
# From :math:`\lambda = 0`, where :math:`u = 0`, to :math:`\lambda = 1` *after one fold*. The value is differentiable in
# ``s1``.

s1 = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
hot, info, branch = ti.continuation(bratu, torch.zeros(n - 1, dtype=torch.float64), 0.0, s1, folds=1)
hot[middle].backward()
print(f"{len(branch.s)} points, fold at {float(branch.folds[0]):.9f}")

# %%
# All of it is known: with :math:`\theta`, a number for each solution,
#
# .. math:: u(x) = -2\log\frac{\cosh((x - \frac12)\theta/2)}{\cosh(\theta/4)}, \qquad \lambda = \frac{\theta^2}{2\cosh^2(\theta/4)} .


def rate(theta):  # lambda
    return theta**2 / (2 * np.cosh(theta / 4) ** 2)


def peak(theta):  # u(1/2)
    return 2 * np.log(np.cosh(theta / 4))


top = scipy.optimize.minimize_scalar(lambda theta: -rate(theta), bounds=(1, 10), options={"xatol": 1e-12}).x
theta = scipy.optimize.brentq(lambda theta: rate(theta) - 1, top, 30, xtol=1e-14)
print(f"fold of the formula: {rate(top):.9f}; the hot u(1/2) at 1: {peak(theta):.9f}, found {hot[middle].item():.9f}")
assert abs(float(branch.folds[0]) - rate(top)) < 1e-8
assert abs(hot[middle].item() - peak(theta)) < 1e-4
slope = np.tanh(theta / 4) / 2 / (rate(theta) * (2 / theta - np.tanh(theta / 4) / 2))
assert abs(float(s1.grad) / slope - 1) < 1e-3

# %%
# Where the fold itself goes
# --------------------------
# In a mixture that runs out of fuel the heat grows like :math:`e^{u/(1 + au)}`. A fold is where the Jacobian has a null
# vector :math:`v`; these are more equations, with :math:`\lambda` as one more unknown, and :math:`a` takes the part of
# ``s``. The curve of folds has a fold of its own: there the two folds of the branch meet in a cusp, beyond which the
# reaction no longer jumps.


def fold(z, a):
    u, v, s = z["u"], z["v"], z["s"]
    heat = torch.exp(u / (1 + a * u))
    return {"u": D2 @ u + s * heat, "v": D2 @ v + s * heat / (1 + a * u) ** 2 * v, "s": v.square().sum() - 1}


u_fold = branch.z[branch.s.argmax()]
_, _, V = torch.linalg.svd(D2 + branch.s.max() * torch.exp(u_fold).diag())
start = {"u": u_fold, "v": V[-1] * V[-1].sum().sign(), "s": branch.s.max()}
_, info, folds = ti.continuation(fold, start, 0.0, 0.1, folds=1)
cusp = float(folds.folds[0])
print(f"the folds meet at a = {cusp:.5f}")

# %%
# That the cusp is where it is said to be can be seen without any derivative: just before it :math:`\lambda` as a
# function of the peak is not monotone, just beyond it is.


def rates(a):
    """lambda along the branch for a given a."""
    options = {"folds": 0, "max_points": 400}
    return ti.continuation(
        lambda u, s: D2 @ u + s * torch.exp(u / (1 + a * u)), torch.zeros(n - 1).double(), 0.0, 20.0, **options
    ).branch


before, beyond = rates(cusp - 0.005), rates(cusp + 0.005)
assert len(before.folds) == 2
assert len(beyond.folds) == 0

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(branch.s, branch.z[:, middle], "o-", ms=3, label="continuation, $a = 0$")
exact = np.linspace(0.01, theta, 200)
left.plot(rate(exact), peak(exact), "k:", label="formula")
left.plot(s1.detach(), hot.detach()[middle], "C3o", ms=8, label="the hot solution at 1")
left.plot(before.s, before.z[:, middle], color="C1", label="just before the cusp")
left.plot(beyond.s, beyond.z[:, middle], color="C2", label="just beyond")
left.set(xlabel=r"$\lambda$", ylabel="$u(1/2)$", xlim=(0, 7), ylim=(0, 20), title="Branches of solutions")
left.legend()
right.plot(folds.s, folds.z["s"], "o-", ms=3)
right.plot(cusp, folds.z["s"][folds.s.argmax()], "C3o", ms=8, label="cusp")
right.set(xlabel="$a$", ylabel=r"$\lambda$ of the folds", title="Between the curves: two stable states")
right.legend()
plt.show()
