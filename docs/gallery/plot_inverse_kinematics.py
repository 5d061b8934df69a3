r"""
Inverse kinematics with joint limits, a thousand at once
========================================================

An arm is to reach a point with its hand: which angles do its joints take? With four joints in the plane there are many
answers, and a small preference for a relaxed arm picks one,

.. math:: q^*(t) = \arg\min_{l \le q \le u} \tfrac12\,\|p(q) - t\|^2 + \tfrac{\mu}{2}\,\|q\|^2 .

Some joints come to their stops. The derivative :math:`\partial q^*/\partial t` knows: a joint at its stop does not
move.
"""

import matplotlib.pyplot as plt
import scipy.optimize
import torch

import torchimplicit as ti

torch.manual_seed(0)
links = torch.tensor([1.0, 0.8, 0.6, 0.4], dtype=torch.float64)
lower = torch.tensor([0.0, -2.0, -2.0, -1.0], dtype=torch.float64)
upper = torch.tensor([3.0, 2.0, 2.0, 0.5], dtype=torch.float64)
mu = 1e-3


def arm(q):
    """The joints' positions (..., 5, 2), of which the last is the hand."""
    angles = q.cumsum(-1)
    steps = links.unsqueeze(-1) * torch.stack([angles.cos(), angles.sin()], -1)
    return torch.cat([torch.zeros_like(steps[..., :1, :]), steps.cumsum(-2)], -2)


def residuals(q, target):
    return torch.cat([arm(q)[..., -1, :] - target, mu**0.5 * q], -1)


# %%
# A thousand targets
# ------------------
# One call: ``batch_ndim=1`` makes each row an arm with steps and a status of its own, ``bounds`` are the stops. Every
# arm starts with its shoulder turned towards the target.

radius = 2.5 * torch.rand(1000, 1, dtype=torch.float64).sqrt()
angle = torch.pi * torch.rand(1000, 1, dtype=torch.float64)
targets = torch.cat([radius * angle.cos(), radius * angle.sin()], 1).requires_grad_()
start = torch.cat([angle - 0.5, torch.tensor([0.5, 0.5, 0.1], dtype=torch.float64).repeat(1000, 1)], 1)

q, info = ti.least_squares(residuals, start, (targets,), bounds=(lower, upper), batch_ndim=1, batched=(True,))
at_stop = (q == lower) | (q == upper)
print(info)
print(f"{int(at_stop.any(1).sum())} arms have a joint at its stop")

# %%
# The derivative of all four joints in both coordinates of all targets is four backwards, whatever the number of arms.
# Among a thousand arms there may be one with a joint that just touches its stop: it does not press against it, so it moves
# with the target to one side, and stays to the other. There are two derivatives then. The one given is that of one side,
# and each backward in which it matters warns; ``info.adjoint.status`` tells which arm it is.

jacobian = torch.stack(
    [torch.autograd.grad(q[:, joint].sum(), targets, retain_graph=True)[0] for joint in range(4)], dim=1
)  # (1000, 4, 2)
print("touching a stop:", (info.adjoint.status == ti.Status.DEGENERATE).nonzero().flatten().tolist())
assert jacobian[at_stop].abs().max() < 1e-12  # a joint at its stop stays there

# %%
# SciPy, arm by arm
# -----------------
# From our answer for its own target, SciPy's bounded least squares must not move; for a target that is displaced a
# little it must go where the derivative points.


def with_scipy(i, target):
    def fun(q):
        return residuals(torch.from_numpy(q), target).numpy()

    inside = q[i].detach().clamp(lower + 1e-9, upper - 1e-9).numpy()
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-12, "jac": "3-point"}
    return torch.from_numpy(scipy.optimize.least_squares(fun, inside, bounds=(lower, upper), **tight).x)


h = 1e-4
for i in range(0, 1000, 250):
    there = targets[i].detach()
    torch.testing.assert_close(q[i].detach(), with_scipy(i, there), atol=1e-5, rtol=0)
    for k, unit in enumerate(torch.eye(2, dtype=torch.float64)):
        moved = (with_scipy(i, there + h * unit) - with_scipy(i, there - h * unit)) / (2 * h)
        torch.testing.assert_close(jacobian[i, :, k], moved, atol=2e-2, rtol=2e-2)

# %%
# A quantity that robotics cares about comes for free: how fast the joints must turn for a hand that moves, the largest
# singular value of the Jacobian.

effort = torch.linalg.svdvals(jacobian)[:, 0]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
for i in range(0, 1000, 10):
    left.plot(*arm(q[i]).detach().T, color="C3" if at_stop[i].any() else "C0", lw=0.8, alpha=0.5)
left.plot(*targets.detach()[::10].T, "k.", ms=3)
left.set(aspect="equal", title="Arms; red: with a joint at its stop", xlabel="x", ylabel="y")
points = right.scatter(*targets.detach().T, c=effort, s=8, cmap="magma", vmin=0, vmax=3)
figure.colorbar(points, ax=right, label="turning per movement of the hand", extend="max")
right.set(aspect="equal", title=r"Largest singular value of $\partial q^*/\partial t$", xlabel="x")
plt.show()
