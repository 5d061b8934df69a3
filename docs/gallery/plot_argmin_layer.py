r"""
An argmin inside a network
==========================

A network scores five uses of a budget; the layer above it divides the budget by what the scores are worth and by what is allowed.
The rules hold in every output, in training and after, and the network below is trained through them. Two layers: the
nearest division to the scores, a quadratic program, and the one that maximises scores and entropy, by an objective of
your own.
"""

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
uses, features, batch = 5, 4, 32

# %%
# The nearest division
# --------------------
# :math:`\min \tfrac12 \|z - v\|^2` with :math:`\sum z = 1` and :math:`0 \le z \le 0.4`. The matrix is one for all, the
# scores are a batch: the solution has a row for each.


def nearest(v):
    one, flat = torch.ones(1), torch.ones(1, uses)
    return ti.quadratic_program(torch.eye(uses), -v, A=flat, b=one, lower=0 * flat[0], upper=0.4 * flat[0]).value


# %%
# The truth has one unknown: :math:`z = \mathrm{clip}(v - \nu, 0, 0.4)`, with the :math:`\nu` at which the sum is 1, by
# bisection; the derivative spreads over those that are at no bound.

v = torch.randn(batch, uses, requires_grad=True)
low, high = v.detach().amin(1, keepdim=True) - 1, v.detach().amax(1, keepdim=True) + 1
for _ in range(60):
    middle = (low + high) / 2
    more = (v - middle).clamp(0, 0.4).sum(1, keepdim=True) > 1
    low, high = torch.where(more, middle, low), torch.where(more, high, middle)
z, weights = nearest(v), torch.randn(batch, uses)
torch.testing.assert_close(z, (v - low).clamp(0, 0.4))
free = ((v - low > 0) & (v - low < 0.4)).double()
centred = weights - (free * weights).sum(1, keepdim=True) / free.sum(1, keepdim=True).clamp(min=1)
torch.testing.assert_close(torch.autograd.grad((z * weights).sum(), v)[0], free * centred)

# %%
# An objective of your own
# ------------------------
# :math:`\min \sum z (\log z - v)` under :math:`\sum z = 1`, and the first two uses together may have no more than 0.3. The
# objective is a module that returns one number per row; the constraints take what it takes.


class Cost(torch.nn.Module):
    def forward(self, z, v):
        return (z * (z.log() - v)).sum(-1)


layer = ti.nn.ArgMin(
    Cost(),
    init=lambda v: torch.full_like(v, 1 / uses),
    constraints=ti.Constraints(
        equal=lambda z, v: z.sum(-1, keepdim=True) - 1, at_most=lambda z, v: z[:, :2].sum(-1, keepdim=True) - 0.3
    ),
    bounds=(1e-9, None),  # log z is defined here
    rtol=1e-10,
)


def closed_form(v):
    """A softmax; where it gives the first two too much, one among these and one among the others."""
    plain = torch.softmax(v, 1)
    parts = torch.cat([0.3 * torch.softmax(v[:, :2], 1), 0.7 * torch.softmax(v[:, 2:], 1)], 1)
    return torch.where(plain[:, :2].sum(1, keepdim=True) > 0.3, parts, plain)


z = layer(v)
print(layer.last_info)
torch.testing.assert_close(z, closed_form(v), atol=1e-9, rtol=0)
gradients = [torch.autograd.grad((f * weights).sum(), v)[0] for f in (z, closed_form(v))]
torch.testing.assert_close(*gradients, atol=1e-8, rtol=0)

# %%
# Trained
# -------
# The data are divisions that somebody has made, by these rules, from scores that depend on what is known and that
# nobody has seen. A network with the layer learns the scores; the same network with a softmax must learn the rules too.

truth = torch.randn(features, uses)
known, later = torch.randn(4 * batch, features), torch.randn(500, features)
seen, expected = closed_form(known @ truth), closed_form(later @ truth)


def trained(end, steps=60):
    torch.manual_seed(1)
    body = torch.nn.Sequential(torch.nn.Linear(features, 16), torch.nn.Tanh(), torch.nn.Linear(16, uses))
    network, history = torch.nn.Sequential(body, end), []
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for step in range(steps):
        rows = torch.arange(batch) + batch * (step % 4)
        optimiser.zero_grad()
        loss = (network(known[rows]) - seen[rows]).square().sum(1).mean()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    with torch.no_grad():
        return network(later), history


(ruled, ruled_losses), (free, free_losses) = trained(layer), trained(torch.nn.Softmax(1))
errors = [(z - expected).square().sum(1).mean().item() for z in (ruled, free)]
print(f"squared error on new data: with the layer {errors[0]:.4f}, with a softmax {errors[1]:.4f}")
print(f"rule broken: {int((free[:, :2].sum(1) > 0.3 + 1e-8).sum())} of 500 by the softmax")
assert (ruled.sum(1) - 1).abs().max() < 1e-8
assert ruled[:, :2].sum(1).max() < 0.3 + 1e-8
assert ruled_losses[-1] < 0.2 * ruled_losses[0]
assert errors[0] < 0.6 * errors[1]

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for losses, name in ((ruled_losses, "with the layer"), (free_losses, "with a softmax")):
    left.semilogy(losses, label=name)
left.set(xlabel="training step", ylabel="loss")
left.legend()
for z, name in ((free, "softmax"), (ruled, "layer")):
    right.plot(expected[:, :2].sum(1), z[:, :2].sum(1), ".", ms=4, label=name)
right.axhline(0.3, color="gray", lw=1)
right.set(xlabel="first two uses, true", ylabel="first two uses, found", title="The rule: at most 0.3")
right.legend()
plt.show()
