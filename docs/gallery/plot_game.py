r"""
An equilibrium of a market, and the tax that changes it
=======================================================

Firms sell the same good. Each chooses how much it makes, between 0 and its capacity, so that no other choice would earn it more
as long as the others keep theirs: an equilibrium of Cournot and Nash. The slope of each firm's loss in its own choice is zero,
or presses the choice against a limit, which is a complementarity problem. So the market is a layer: costs and taxes in,
quantities out, and a backward tells who reacts to what.
"""

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.set_default_dtype(torch.float64)
cost = torch.tensor([1.0, 1.5, 2.0, 3.0, 4.5])
bend = torch.tensor([0.6, 0.5, 0.4, 0.3, 0.2])
capacity = torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0])
firms = len(cost)


def price(q):
    return 8.0 - q.sum(-1, keepdim=True)


def loss_slope(q, tax):
    """Of each firm's loss, cost plus tax less revenue, in its own quantity: (batch, firms)."""
    return cost + tax + bend * q - price(q) + q


def market(tax):
    """All taxes (batch, firms) at once: each market is a system of its own."""
    start = torch.ones_like(tax)
    return ti.complementarity(loss_slope, start, (tax,), 0.0, capacity, batch_ndim=1, batched=(True,), rtol=1e-12)


# %%
# The market under a tax on each unit
# -----------------------------------

levels = torch.linspace(0, 5, 101)
q, info = market(levels[:, None].expand(-1, firms))
assert info.converged.all()

# No firm gains by any other choice.
for i in range(firms):
    choices = torch.linspace(0, 1, 201) * capacity[i]
    others = (q.sum(-1) - q[:, i])[:, None]
    profit = choices * (8.0 - others - choices) - (cost[i] + levels[:, None]) * choices - bend[i] * choices**2 / 2
    own = q[:, i] * (8.0 - q.sum(-1)) - (cost[i] + levels) * q[:, i] - bend[i] * q[:, i] ** 2 / 2
    assert (profit.amax(-1) <= own + 1e-9).all()

# %%
# Who reacts to whom
# ------------------
# One firm is taxed a little more. What it makes less, the others make more, but for those at their capacity and those that are
# out of the market: the derivative is that of the firms that are free.

tax = torch.full((1, firms), 0.5)
J = torch.func.jacrev(lambda tax: market(tax).value)(tax)[0, :, 0, :]
q0 = market(tax).value[0]
free = ((q0 > 0) & (q0 < capacity)).nonzero().flatten()
exact = torch.zeros(firms, firms)
exact[free[:, None], free] = -torch.linalg.inv(torch.diag(1 + bend[free]) + 1)
torch.testing.assert_close(J, exact)

# %%
# The tax that raises most
# ------------------------
# A regulator goes uphill through the layer; where a firm leaves the market the curve has a kink, and is followed all the same.
tax = torch.tensor([0.5], requires_grad=True)
for _ in range(200):
    revenue = (tax * market(tax[:, None].expand(-1, firms)).value.sum(-1)).sum()
    (slope,) = torch.autograd.grad(revenue, tax)
    tax = (tax + 0.1 * slope).detach().requires_grad_()
curve = levels * q.sum(-1)
tax, revenue = tax.detach(), revenue.detach()
print(f"tax {float(tax):.3f} raises {float(revenue):.3f}; the best of {len(levels)} levels {float(curve.max()):.3f}")
assert revenue >= curve.max() - 1e-3

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
left.plot(levels, q)
left.set(xlabel="tax on each unit", ylabel="quantity of each firm")
right.plot(levels, curve)
right.plot(tax, revenue, "o")
right.set(xlabel="tax on each unit", ylabel="revenue")
figure.tight_layout()
plt.show()
