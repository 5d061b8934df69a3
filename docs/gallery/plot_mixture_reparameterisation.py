r"""
A mixture, reparameterised implicitly
=====================================

A normal variable is :math:`\mu + \sigma\varepsilon`, and gradients flow through it to :math:`\mu` and :math:`\sigma`. A
mixture of normals has no such formula. But the sample :math:`x` that belongs to a uniform :math:`u` is the root of

.. math:: F(x;\theta) = u, \qquad F(x; \theta) = \sum_k \pi_k\,\Phi\!\left(\frac{x-\mu_k}{\sigma_k}\right),

and the derivative of a root is what an implicit layer gives: :math:`\partial x/\partial\theta = -(\partial
F/\partial\theta)/p(x)` (Figurnov, Mohamed and Mnih, 2018). Nothing but :math:`F` needs to be written.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_iris
from torch.special import ndtr

import torchimplicit as ti

# %%
# Samples as roots
# ----------------
# Scalar equations, a root each: ``batch_ndim=1``. The start is the sample of the wrong normal; where Newton's method
# fails in a tail, a bracket is sought and closed.


def cdf(x, weights, means, scales):
    return (weights * ndtr((x.unsqueeze(-1) - means) / scales)).sum(-1)


def quantile(u, weights, means, scales):
    """The x with F(x) = u."""
    start = torch.full_like(u, means.detach().mean().item())
    x, info = ti.root(lambda x: cdf(x, weights, means, scales) - u, start, batch_ndim=1)
    return x


# %%
# Against closed forms
# --------------------
# With the midpoints of ten thousand equal intervals in the place of random numbers, a mean over samples is an integral.
# :math:`\mathbb{E}\,x^2 = \sum_k \pi_k(\mu_k^2 + \sigma_k^2)`, so its gradients are :math:`2\pi_k\mu_k`,
# :math:`2\pi_k\sigma_k` and :math:`\mu_k^2 + \sigma_k^2`, up to a constant for the weights, which sum to 1.

u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
weights = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
means = torch.tensor([-1.5, 1.0], dtype=torch.float64, requires_grad=True)
scales = torch.tensor([0.5, 0.8], dtype=torch.float64, requires_grad=True)
x = quantile(u, weights / weights.sum(), means, scales)
x.square().mean().backward()
with torch.no_grad():
    square = means.square() + scales.square()
    torch.testing.assert_close(means.grad, 2 * weights * means, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scales.grad, 2 * weights * scales, rtol=5e-3, atol=1e-3)
    torch.testing.assert_close(weights.grad, square - (weights * square).sum(), rtol=1e-3, atol=1e-3)

# %%
# Fitting by optimal transport
# ----------------------------
# In one dimension the Wasserstein distance compares quantiles, :math:`W_2^2 = \int_0^1 (F^{-1}(u) - G^{-1}(u))^2\,du`:
# a loss that needs samples with gradients. The data are the lengths of 150 iris petals, sorted, which are their own
# quantiles.

petals = torch.tensor(load_iris().data[:, 2]).sort().values
u = (torch.arange(150, dtype=torch.float64) + 0.5) / 150
theta = torch.tensor([[0.0, 0.0], [2.0, 4.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)


def mixture():
    return theta[0].softmax(0), theta[1], theta[2].exp()


optimizer = torch.optim.LBFGS([theta], max_iter=40, line_search_fn="strong_wolfe")
losses = []


def closure():
    optimizer.zero_grad()
    loss = (quantile(u, *mixture()) - petals).square().mean()
    loss.backward()
    losses.append(loss.item())
    return loss


optimizer.step(closure)
weights, means, scales = (part.detach() for part in mixture())
print(f"squared distance {losses[0]:.3f} to {losses[-1]:.5f} in {len(losses)} evaluations")
print(f"weights {weights.numpy().round(3)}, means {means.numpy().round(2)}, scales {scales.numpy().round(2)}")

# %%
# A third of these flowers are *Iris setosa*, which nothing in the fit was told: the first component has found them.

setosa = torch.tensor(load_iris().target == 0)
lengths = torch.tensor(load_iris().data[:, 2])[setosa]
assert abs(weights[0] - 1 / 3) < 0.02
assert abs(means[0] - lengths.mean()) < 0.05

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
fine = torch.linspace(0, 8, 400, dtype=torch.float64, requires_grad=True)
density = torch.autograd.grad(cdf(fine, weights, means, scales).sum(), fine)[0]
left.hist(petals, bins=30, density=True, color="0.8", label="iris petals")
left.plot(fine.detach(), density, label="fitted mixture")
left.set(xlabel="length in cm", title="Density")
left.legend()
right.plot(u, petals, "k.", ms=3, label="petals")
right.plot(u, quantile(u, weights, means, scales), label="fitted $F^{-1}(u)$")
right.set(xlabel="$u$", ylabel="length in cm", title="Quantiles: what the loss compares")
right.legend()
plt.show()
