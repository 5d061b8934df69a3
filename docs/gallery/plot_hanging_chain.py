r"""
A hanging chain, and the weights that give it a wanted shape
============================================================

A chain hangs where its energy is least. That is an implicit layer: weights in, shape out. Gaudí used it backwards, with
strings and bags of shot, to find the arches that stand; here a fit finds the weights, by the derivative of the layer.
"""

import matplotlib.pyplot as plt
import scipy.optimize
import torch

import torchimplicit as ti

n = 23  # knots between the two ends
span, length = 2.0, 3.0
ends = torch.tensor([[-span / 2, 0.0], [span / 2, 0.0]], dtype=torch.float64)


def knots(z):
    return torch.cat([ends[:1], z, ends[1:]])


def energy(z, weights):
    """Stiff springs between the knots (n, 2), and a weight at each of them."""
    links = knots(z).diff(dim=0).norm(dim=-1)
    rest = length / (n + 1)
    return 0.5 * 1e5 * (links - rest).square().sum() + (weights * z[:, 1]).sum()


def hang(weights, **options):
    x = torch.linspace(-span / 2, span / 2, n + 2, dtype=torch.float64)[1:-1]
    start = torch.stack([x, x.square() - span**2 / 4], -1)
    return ti.minimize(energy, start, (weights,), **options)


# %%
# Equal weights: the catenary
# ---------------------------
# The solution is known: :math:`y = a\cosh(x/a) + c`, where :math:`2a\sinh\frac{\text{span}}{2a}` is the length. SciPy
# finds :math:`a`.

equal = torch.full((n,), 1 / n, dtype=torch.float64)
z, info = hang(equal)
print(info)
a = scipy.optimize.brentq(lambda a: 2 * a * torch.sinh(torch.tensor(span / 2 / a)) - length, 0.1, 10)


def catenary(x):
    return a * torch.cosh(x / a) - a * torch.cosh(torch.tensor(span / 2 / a))


off = (z[:, 1] - catenary(z[:, 0])).abs().max()
print(f"farthest from the catenary: {off:.1e}, with links of length {length / (n + 1):.2f}")
assert off < 3e-3

# %%
# The derivative of the lowest point in every weight is one backward. It agrees with differences of the layer.

weights = equal.clone().requires_grad_()
hang(weights).value[n // 2, 1].backward()
h = 1e-5
bump = torch.zeros(n, dtype=torch.float64)
bump[5] = h
difference = (hang(equal + bump).value - hang(equal - bump).value)[n // 2, 1] / (2 * h)
torch.testing.assert_close(weights.grad[5], difference, rtol=1e-4, atol=1e-7)

# %%
# Backwards: weights for a parabola
# ---------------------------------
# A chain under a load that is even along the *horizontal*, such as the deck of a bridge, hangs in a parabola. So a
# chain that is to hang in a parabola must be loaded in proportion to the horizontal distance of its knots: an answer
# that we know, and the fit does not.
#
# The fit is an implicit layer around the implicit layer: its unknowns are the logarithms of the weights and the depth
# of the parabola, its residuals what the knots are off, and the derivative of the hanging chain is what its solver
# steps by.


def miss(unknown):
    log_weights, depth = unknown["log_weights"], unknown["depth"]
    z = hang(log_weights.softmax(0), rtol=1e-11).value
    off = z[:, 1] - depth * (z[:, 0].square() - span**2 / 4)
    return off, log_weights.sum()  # the softmax does not see a constant: the last residual pins it


start = {"log_weights": torch.zeros(n, dtype=torch.float64), "depth": torch.tensor(1.0, dtype=torch.float64)}
fit, info = ti.least_squares(miss, start, rtol=1e-6)
print(info)

found, depth = fit["log_weights"].softmax(0), fit["depth"]
z_parabola = hang(found).value
x = knots(z_parabola)[:, 0]
known = (x[2:] - x[:-2]) / (x[2:] - x[:-2]).sum()
print(f"largest relative error of a weight: {(found / known - 1).abs().max():.1e}")
torch.testing.assert_close(found, known, rtol=1e-5, atol=0)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(*knots(z.detach()).T, "o-", ms=3, label="equal weights")
fine = torch.linspace(-span / 2, span / 2, 200, dtype=torch.float64)
left.plot(fine, catenary(fine), "k:", label="catenary")
left.plot(*knots(z_parabola).T, "s-", ms=3, label="found weights")
left.plot(fine, depth * (fine.square() - span**2 / 4), "k--", lw=1, label="parabola")
left.set(aspect="equal", title="Shapes")
left.legend()
right.bar(range(n), found, color="C1", label="found")
right.plot(range(n), known, "k.", label="known")
right.axhline(1 / n, color="C0", label="equal")
right.set(xlabel="knot", ylabel="share of the weight", title="Weights that make it a parabola")
right.legend()
plt.show()
