r"""
A simulator from elsewhere, made differentiable
===============================================

A simulator that somebody else wrote runs until nothing changes any more. It is SciPy inside, or Fortran; no gradient
comes out of it. But what it ends in is known: a steady state, at which the rate of change vanishes. That condition,
written in PyTorch, is all that ``ti.implicit`` needs; the simulator is called as it is.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate
import torch

import torchimplicit as ti

torch.manual_seed(0)
n, h = 40, 1 / 41
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
# Without the simulator and without its grid, SciPy's solver for boundary value problems finds the same profile.

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
# Many parameters at once
# -----------------------
# A stock of fish grows and is fished, :math:`\dot u = r u (1 - u) - q`. Each row of ``p`` has an :math:`r` and a :math:`q`;
# ``batch_ndim=1`` makes each row of the result a system that is judged by itself, and the condition takes the columns
# apart. Where :math:`4 q < r` the steady state is known: :math:`u = \tfrac12 + \sqrt{\tfrac14 - q / r}`.


def fished(p):
    r, q = p.numpy().T
    u = np.ones(len(p))
    for _ in range(3000):
        u = np.maximum(u + 0.05 * (r * u * (1 - u) - q), 0)  # no fewer than none
    return torch.from_numpy(u[:, None])


def growth(u, p):
    r, q = p.unbind(-1)
    return torch.stack([r * u[:, 0] * (1 - u[:, 0]) - q], -1)


p = torch.tensor([[1.0, 0.1], [2.0, 0.3], [0.5, 0.1], [1.0, 0.3]], dtype=torch.float64, requires_grad=True)
u = ti.implicit(growth, batch_ndim=1)(fished)(p[:3])
(gradient,) = torch.autograd.grad(u.sum(), p)
known = 0.5 + (0.25 - p[:3, 1] / p[:3, 0]).sqrt()
torch.testing.assert_close(u[:, 0], known)
torch.testing.assert_close(gradient, torch.autograd.grad(known.sum(), p)[0])

# %%
# A parameter without a steady state
# ----------------------------------
# The last row is fished too much. None, which the simulator returns for it, is no zero of the condition, and a warning
# or an error says so; with ``on_failure="nan"`` that row is NaN and its gradient 0, and the others are what they were
# (:func:`torchimplicit.implicit`).

try:
    ti.implicit(growth, batch_ndim=1, on_failure="raise")(fished)(p)
except ti.ConvergenceError as error:
    print(textwrap.fill(str(error), 68))
u = ti.implicit(growth, batch_ndim=1, on_failure="nan")(fished)(p)
assert u[:, 0].isnan().tolist() == [False, False, False, True]
torch.testing.assert_close(torch.autograd.grad(u.nansum(), p)[0], gradient)  # whose last row is 0

# %%
# A step in PyTorch
# -----------------
# A simulator whose step is written in PyTorch needs no black box: its steady state is a fixed point of the step, and few
# of its steps are taken. The fixed point found need not be the stable one, to which the simulator would go: from few fish
# Newton's method finds the other, below which a stock dies out. The sign of :math:`\partial\dot u/\partial u` tells.

step, many = lambda u, p: u + 0.05 * growth(u, p), torch.ones(3, 1, dtype=torch.float64)
stable, _ = ti.fixed_point(step, many, (p[:3],), batch_ndim=1)
other, _ = ti.fixed_point(step, 0.1 * many, (p[:3],), batch_ndim=1, solver="newton")
found = torch.cat([stable, other], 1)
torch.testing.assert_close(found, torch.stack([known, 1 - known], 1), atol=1e-6, rtol=0)
assert ((p[:3, :1] * (1 - 2 * found)).sign() == torch.tensor([-1, 1])).all()

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
