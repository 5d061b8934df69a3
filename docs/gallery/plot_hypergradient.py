r"""
A thousand penalties by one hypergradient
=========================================

Ridge regression has one penalty because a grid search can only afford one. With the gradient of the validation error in
the penalties, every feature can have its own:

.. math::

    \min_\alpha\; \mathcal{L}_{\text{val}}\bigl(w^*(\alpha)\bigr), \qquad
    w^*(\alpha) = \arg\min_w \tfrac12\|Xw - y\|^2 + \tfrac12\sum_j e^{\alpha_j} w_j^2 .

The data: 442 diabetes patients with ten measurements each, and all 1000 products of them up to degree four.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import torchimplicit as ti

torch.manual_seed(0)

# %%
data = load_diabetes()
features = PolynomialFeatures(4, include_bias=False).fit_transform(StandardScaler().fit_transform(data.data))
X = torch.tensor(StandardScaler().fit_transform(features))
y = torch.tensor((data.target - data.target.mean()) / data.target.std())
print(f"{X.shape[0]} patients, {X.shape[1]} features")
order = torch.randperm(442)
train, validation, held_out = order[:200], order[200:320], order[320:]


def objective(w, alpha):
    return 0.5 * (X[train] @ w - y[train]).square().sum() + 0.5 * (alpha.exp() * w.square()).sum()


def fit(alpha, rtol=1e-4):
    """The weights: a minimum in 1000 unknowns, found by Newton-CG without any matrix of that size."""
    return ti.minimize(objective, torch.zeros(1000, dtype=torch.float64), (alpha,), rtol=rtol).value


def error(w, rows):
    return (X[rows] @ w - y[rows]).square().mean()


# %%
# The hypergradient against linear algebra
# ----------------------------------------
# For ridge regression both can be written out: with :math:`H = X^\top X + \mathrm{diag}(e^\alpha)` it is
# :math:`-e^{\alpha_j} w_j\,(H^{-1} \nabla_w \mathcal{L}_{\text{val}})_j`. The layer needs neither this formula nor this
# matrix, and would take a logistic loss as well.

alpha = torch.full((1000,), 6.0, dtype=torch.float64, requires_grad=True)
w = fit(alpha, rtol=1e-9)
(gradient,) = torch.autograd.grad(error(w, validation), alpha)
with torch.no_grad():
    H = X[train].T @ X[train] + alpha.exp().diag()
    w_exact = torch.linalg.solve(H, X[train].T @ y[train])
    of_loss = 2 * X[validation].T @ (X[validation] @ w_exact - y[validation]) / len(validation)
    known = -alpha.exp() * w_exact * torch.linalg.solve(H, of_loss)
torch.testing.assert_close(w.detach(), w_exact, rtol=1e-6, atol=1e-9)
torch.testing.assert_close(gradient, known, rtol=1e-5, atol=1e-10)

# %%
# One penalty for all, by search
# ------------------------------

grid = torch.linspace(4, 10, 4, dtype=torch.float64)
with torch.no_grad():
    single = [
        [error(fit(torch.full_like(alpha, a)), rows).item() for rows in (validation, held_out)] for a in grid.tolist()
    ]
best = min(range(4), key=lambda i: single[i][0])

# %%
# A thousand penalties, by gradient
# ---------------------------------
# From the best single one on.

alpha = torch.full((1000,), grid[best].item(), dtype=torch.float64, requires_grad=True)
optimizer = torch.optim.Adam([alpha], lr=0.3)
errors = []
for _ in range(15):
    optimizer.zero_grad()
    w = fit(alpha)
    loss = error(w, validation)
    loss.backward()
    optimizer.step()
    errors.append((loss.item(), error(w.detach(), held_out).item()))

least = min(range(15), key=lambda i: errors[i][1])
print(f"one penalty: validation {single[best][0]:.3f}, held out {single[best][1]:.3f}")
print(f"a thousand, after {least} steps: validation {errors[least][0]:.3f}, held out {errors[least][1]:.3f}")
assert errors[least][0] < 0.8 * single[best][0]
assert errors[least][1] < 0.95 * single[best][1]

# %%
# For methods of second order
# ---------------------------
# The outer loss has a Hessian too, here in the penalties of the first ten features: the layer is differentiated twice. The rows of
# differences of hypergradients agree.


def outer(ten):
    alpha = torch.full((1000,), 12.0, dtype=torch.float64)
    return error(fit(torch.cat([ten, alpha[10:]]), rtol=1e-10), validation)


ten = torch.full((10,), 3.0, dtype=torch.float64)
hypergradient = torch.func.grad(outer)
hessian = torch.func.jacrev(hypergradient)(ten)
step = 1e-4 * torch.eye(10, dtype=torch.float64)[3]
row = (hypergradient(ten + step) - hypergradient(ten - step)) / 2e-4
torch.testing.assert_close(hessian[3], row, rtol=1e-4, atol=1e-9)

# %%
# The validation error falls on, while that of the patients held out turns: a thousand hyperparameters overfit 120
# patients as a thousand weights would, and one has to stop early. (Having chosen the step, the patients held out are no
# test any more: an honest last number wants some that nobody has looked at.)

names = PolynomialFeatures(4, include_bias=False).fit(data.data).get_feature_names_out(data.feature_names)
print("least penalised:", ", ".join(names[alpha.detach().argsort()[:8]]))

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for i, name in enumerate(("validation", "held out")):
    left.plot([pair[i] for pair in errors], color=f"C{i}", label=name)
    left.axhline(single[best][i], color=f"C{i}", ls=":", label=f"{name}, one penalty")
left.set(xlabel="step", ylabel="mean squared error", title="A thousand penalties")
left.legend()
right.scatter(alpha.detach(), w.detach(), s=6)
right.set(xlabel=r"log penalty $\alpha_j$", ylabel="weight $w_j$", title="What the penalties have become")
plt.show()
