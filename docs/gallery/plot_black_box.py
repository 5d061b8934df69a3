r"""
A simulator from elsewhere, made differentiable
===============================================

A simulator that somebody else wrote runs until nothing changes any more. It is SciPy inside, or Fortran; no gradient
comes out of it. But what it ends in is known: a steady state, at which the rate of change vanishes. That condition,
written in PyTorch, is all that ``ti.implicit`` needs; the simulator is called as it is.
"""

import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate
import torch

import torchimplicit as ti

torch.manual_seed(0)
n = 40
h = 1 / (n + 1)
x = np.linspace(0, 1, n + 2)

# %%
# The simulator
# -------------
# A substance diffuses in from the left at concentration 1 and reacts with itself on the way,
# :math:`\dot u = D u'' - k u^2`. Forty cells, a stiff integrator, NumPy only.


def simulate(D, k):
    """The concentrations after a long time."""

    def rate(t, u):
        inside = np.concatenate([[1.0], u, [0.0]])
        return D * (inside[2:] - 2 * u + inside[:-2]) / h**2 - k * u**2

    return scipy.integrate.solve_ivp(rate, (0, 200), np.zeros(n), method="LSODA", rtol=1e-9, atol=1e-12).y[:, -1]


# %%
# The condition
# -------------
# The same balance, in PyTorch, as a function of the state and the parameters. A result that does not meet it is
# reported: a simulator that was stopped too early, or a condition that is not the simulator's.


def balance(u, D, k):
    inside = torch.cat([u.new_ones(1), u, u.new_zeros(1)])
    return D * (inside[2:] - 2 * u + inside[:-2]) / h**2 - k * u**2


@ti.implicit(balance)
def steady_state(D, k):
    return torch.from_numpy(simulate(D.numpy(), k.numpy()))


# %%
# The derivative, in one backward, against differences of the simulator, in four more runs.

D = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
k = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
steady_state(D, k)[n // 2].backward()
for name, got, low, high in (
    ("D", D.grad, simulate(0.0999, 8.0), simulate(0.1001, 8.0)),
    ("k", k.grad, simulate(0.1, 7.999), simulate(0.1, 8.001)),
):
    difference = (high - low)[n // 2] / {"D": 2e-4, "k": 2e-3}[name]
    print(f"d u / d {name}: {got:.8f}, by differences {difference:.8f}")
    assert abs(got / difference - 1) < 1e-4

# %%
# Another truth, without the simulator and without the grid: SciPy's solver for boundary value problems finds the same
# profile.

profile = scipy.integrate.solve_bvp(
    lambda x, y: [y[1], 80 * y[0] ** 2], lambda a, b: [a[0] - 1, b[0]], x, np.stack([1 - x, x - 1]), tol=1e-8
).sol(x)[0]
assert np.abs(profile[1:-1] - simulate(0.1, 8.0)).max() < 3e-3

# %%
# What it is for: calibration
# ---------------------------
# Noisy measurements at every cell, and how fast the substance leaves on the right, which tells :math:`D` and :math:`k`
# apart. The fit is by the optimiser that one always uses.

true_D, true_k = 0.1, 8.0
clean = torch.from_numpy(simulate(true_D, true_k))
measured = clean + 0.01 * torch.randn(n, dtype=torch.float64)
outflow = true_D * clean[-1] / h

log = torch.tensor([0.5, 2.0], dtype=torch.float64).log().requires_grad_()
optimizer = torch.optim.LBFGS([log], max_iter=25, line_search_fn="strong_wolfe")
path = []


def closure():
    optimizer.zero_grad()
    D, k = log.exp()
    u = steady_state(D, k)
    loss = ((u - measured) / 0.01).square().mean() + (100 * (D * u[-1] / h / outflow - 1)).square()
    loss.backward()
    path.append((*log.exp().tolist(), loss.item()))
    return loss


optimizer.step(closure)
found_D, found_k = log.exp().tolist()
print(f"{len(path)} simulations: D = {found_D:.4f} (true {true_D}), k = {found_k:.3f} (true {true_k})")
assert abs(found_D / true_D - 1) < 0.05
assert abs(found_k / true_k - 1) < 0.05

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(x[1:-1], measured, "k.", ms=4, label="measured")
left.plot(x[1:-1], simulate(0.5, 2.0), "C1--", label="start of the fit")
left.plot(x[1:-1], simulate(found_D, found_k), "C0", label="fitted")
left.set(xlabel="$x$", ylabel="concentration", title="Steady states of the simulator")
left.legend()
Ds, ks, losses = zip(*path)
right.plot(Ds, ks, "o-", ms=4)
right.plot(true_D, true_k, "C3*", ms=14, label="true")
right.set(xscale="log", yscale="log", xlabel="$D$", ylabel="$k$", title="The way of the optimiser")
right.legend()
plt.show()
