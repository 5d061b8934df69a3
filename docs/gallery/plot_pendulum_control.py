r"""
A controller that learns the body it controls
=============================================

Model predictive control plans the torques :math:`u_1 \dots u_T` of a pendulum by a model of it, under limits on the torque, applies
the first and plans again. The plan is a minimum under bounds, so a controller is a layer: its derivative in the model's parameters says
which pendulum a teacher has in mind who is only seen to act (Amos et al., Differentiable MPC, 2018).
"""

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
steps, dt, limit = 15, 0.1, 2.0


def swing(x, u, model):
    """One step of a pendulum, x = (angle from upright, speed); the model is (log of its length, log of its mass)."""
    length, mass = model.exp()
    angle, speed = x.unbind(-1)
    speed = speed + dt * (9.81 / length * angle.sin() + u / (mass * length**2))
    return torch.stack([angle + dt * speed, speed], -1)


def cost(u, x, model):
    """What plans u, (..., steps), cost from the states x, (..., 2): distance from upright, speed and torque."""
    total = 0.01 * u.square().sum(-1)
    for torque in u.unbind(-1):
        x = swing(x, torque, model)
        total = total + x[..., 0] ** 2 + 0.1 * x[..., 1] ** 2
    return total + 10 * x[..., 0] ** 2


def plan(x, model):
    return ti.minimize(cost, torch.zeros(len(x), steps), (x, model), bounds=(-limit, limit), batch_ndim=1, rtol=1e-10)


# %%
# A plan, and how it changes
# --------------------------
# The derivative of the first torque in the state is the controller's gain. Where the torque is at its limit the gain is 0: the
# multiplier of the bound says how much a stronger motor would be worth.

truth = torch.tensor([1.2, 0.6]).log()
angles = torch.linspace(-0.6, 0.6, 25)
states = torch.stack([angles, torch.zeros_like(angles)], -1).requires_grad_()
u, info = plan(states, truth)
assert info.converged.all()
(gain,) = torch.autograd.grad(u[:, 0].sum(), states)

h = 1e-5
with torch.no_grad():
    moved = torch.tensor([h, 0.0])
    difference = (plan(states + moved, truth)[0] - plan(states - moved, truth)[0])[:, 0] / (2 * h)
torch.testing.assert_close(gain[:, 0], difference, atol=1e-5, rtol=1e-5)
held = u[:, 0].abs() == limit
assert 0 < held.sum() < len(held)
assert (gain[held] == 0).all()

# %%
# Learning from a teacher
# -----------------------
# The teacher knows the pendulum. We see torques, from states near upright, and search the length and the mass with which our
# controller would do the same.

seen = torch.stack([0.3 * torch.randn(20), 0.5 * torch.randn(20)], -1)
with torch.no_grad():
    shown = plan(seen, truth)[0]
model = torch.zeros(2, requires_grad=True)
optimiser = torch.optim.LBFGS([model], max_iter=40, line_search_fn="strong_wolfe", tolerance_change=1e-14)
losses = []


def imitation():
    optimiser.zero_grad()
    loss = (plan(seen, model)[0] - shown).square().mean()
    loss.backward()
    losses.append(loss.item())
    return loss


optimiser.step(imitation)
print(f"length {model[0].exp():.6f}, mass {model[1].exp():.6f}, after {len(losses)} plans of 20 states")
torch.testing.assert_close(model.detach(), truth, atol=1e-4, rtol=0)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
left.plot(angles, u[:, 0].detach(), label="first torque")
left.plot(angles, gain[:, 0] / 10, "--", label="its gain / 10")
left.set(xlabel="angle from upright")
left.legend()
right.semilogy(losses)
right.set(xlabel="evaluation", ylabel="distance from the teacher's torques")
figure.tight_layout()
plt.show()
