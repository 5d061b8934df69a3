r"""
Through a stiff ODE: implicit Euler, trained end to end
=======================================================

Robertson's reaction mixes a rate of 0.04 with one of :math:`3\cdot 10^7`. Explicit steps of a useful length blow up;
implicit ones do not, but each is an equation to solve,

.. math:: z_{n+1} - z_n - h\,f(z_{n+1}, k) = 0 .

Each step is an implicit layer, a trajectory is a chain of them, and autograd goes through all of it: the rates
:math:`k` are learned from a trajectory.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.integrate import solve_ivp

import torchimplicit as ti

# %%
# The chemistry and the step
# --------------------------
# A → B, slowly; B + B → B + C, at once; B + C → A + C, fast. The second substance is always scarce, :math:`10^{-5}`: it
# is a leaf of its own, with a tolerance in its own unit. The first is what is left of the total of 1.


def rates(b, c, k):
    """Of the second and the third substance."""
    formed, lost, back = k[0] * (1 - b - c), k[1] * b**2, k[2] * b * c
    return formed - lost - back, lost


def step(z, h, k):
    def balance(new, old, k):
        db, dc = rates(new["b"], new["c"], k)
        return {"b": new["b"] - old["b"] - h * db, "c": new["c"] - old["c"] - h * dc}

    return ti.root(balance, {name: leaf.detach() for name, leaf in z.items()}, (z, k), solver="newton").value


def trajectory(k, times):
    z = {"b": torch.tensor(0.0, dtype=k.dtype), "c": torch.tensor(0.0, dtype=k.dtype)}
    path = []
    for h in times.diff(prepend=times.new_zeros(1)):
        z = step(z, h, k)
        path.append(torch.stack([z["b"] * 1e4, z["c"]]))
    return torch.stack(path)


# %%
# Against SciPy
# -------------
# Over six decades of time. Implicit Euler is of first order: with twice as many steps, half the error.

true = torch.tensor([0.04, 3e7, 1e4], dtype=torch.float64)


def with_scipy(times):
    def fun(t, z):
        b, c = rates(*z, true.tolist())
        return [b, c]

    found = solve_ivp(fun, (0, float(times[-1])), [0.0, 0.0], "Radau", times, rtol=1e-9, atol=1e-13)
    return torch.from_numpy(found.y.T.copy()) * torch.tensor([1e4, 1.0], dtype=torch.float64)


coarse, fine = (torch.logspace(-2, 4, n, dtype=torch.float64) for n in (25, 49))
with torch.no_grad():
    errors = [(trajectory(true, times) - with_scipy(times))[-1, 1].abs().item() for times in (coarse, fine)]
print(f"error at the end: {errors[0]:.4f} with 25 steps, {errors[1]:.4f} with 49")
assert 1.6 < errors[0] / errors[1] < 2.4

# %%
# Learning the rates
# ------------------
# The layer's own trajectory for the true rates is the target, so that what is learned can be judged to the last digit;
# the start is wrong by factors of 3, 10 and 3. The gradient is checked first, by differences.

target = trajectory(true, coarse).detach()
log = (true * torch.tensor([3.0, 0.1, 3.0], dtype=torch.float64)).log().requires_grad_()


def misfit(log):
    return (trajectory(log.exp(), coarse) - target).square().mean()


(gradient,) = torch.autograd.grad(misfit(log), log)
with torch.no_grad():
    units = 1e-4 * torch.eye(3, dtype=torch.float64)
    differences = torch.stack([(misfit(log + unit) - misfit(log - unit)) / 2e-4 for unit in units])
torch.testing.assert_close(gradient, differences, rtol=1e-4, atol=1e-8)

start = trajectory(log.exp(), coarse).detach()
optimizer = torch.optim.LBFGS([log], max_iter=30, line_search_fn="strong_wolfe", tolerance_change=1e-14)
losses = []


def closure():
    optimizer.zero_grad()
    loss = misfit(log)
    loss.backward()
    losses.append(loss.item())
    return loss


optimizer.step(closure)
print(f"{len(losses)} trajectories: {log.detach().exp().tolist()}")
torch.testing.assert_close(log.detach().exp(), true, rtol=1e-2, atol=0)

# %%
# What the explicit way would have done with the same steps.

explicit, b, c = [], 0.0, 0.0
with np.errstate(all="ignore"):
    for h in np.diff(coarse.numpy(), prepend=0):
        db, dc = rates(np.float64(b), np.float64(c), true.tolist())
        b, c = b + h * db, c + h * dc
        explicit.append(c)
assert not np.isfinite(explicit[-1])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
exact = with_scipy(fine)
for i, label in enumerate(("$10^4\\,b$", "$c$")):
    left.semilogx(fine, exact[:, i], f"C{i}", label=f"{label}, SciPy")
    left.semilogx(coarse, trajectory(log.exp(), coarse).detach()[:, i], f"C{i}o", ms=4, label=f"{label}, learned")
    left.semilogx(coarse, start[:, i], f"C{i}:", label=f"{label}, start")
left.semilogx(coarse, explicit, "k--", lw=1, label="$c$, explicit Euler")
left.set(xlabel="time", ylim=(-0.05, 1.3), title="Robertson's reaction")
left.legend(fontsize=7)
right.semilogy(losses)
right.set(xlabel="trajectory", ylabel="mean squared misfit", title="Learning the three rates")
plt.show()
