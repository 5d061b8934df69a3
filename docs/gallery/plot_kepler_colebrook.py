r"""
Kepler and Colebrook, two hundred thousand at a time
====================================================

Two equations that engineers solve in their sleep, each in one unknown, each without a formula for the answer: where is
a planet at a given time, and how much friction does a pipe have? Here two hundred thousand of each are solved at once, every
one with its own steps and status, and the derivative in every input comes with them.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.special import wrightomega

import torchimplicit as ti

torch.manual_seed(0)
N = 200_000

# %%
# Kepler's equation
# -----------------
# The eccentric anomaly :math:`E` of an orbit with eccentricity :math:`e`, at the mean anomaly :math:`M` (time, as an
# angle), solves
#
# .. math:: E - e \sin E = M.
#
# ``batch_ndim=1`` says that each of the entries of ``E`` is a system of its own. Which arguments carry that
# dimension is told by ``batched``: equations that are done are then left out of the later evaluations.

e = (0.95 * torch.rand(N, dtype=torch.float64)).requires_grad_()
M = (torch.pi * (2 * torch.rand(N, dtype=torch.float64) - 1)).requires_grad_()


def kepler(E, M, e):
    return E - e * torch.sin(E) - M


start = time.perf_counter()
E, info = ti.root(kepler, M.detach(), (M, e), batch_ndim=1, batched=(True, True))
E.sum().backward()
print(f"{time.perf_counter() - start:.2f} s for the solve and its backward")
print(info)

# %%
# The derivatives are known: :math:`\partial E/\partial M = 1/(1 - e\cos E)` and :math:`\partial E/\partial e = \sin
# E/(1 - e\cos E)`. And as every :math:`M` can be made from an :math:`E`, the answer can be checked against the one it
# was made from.

slope = 1 / (1 - e * E.cos())
torch.testing.assert_close(M.grad, slope.detach())
torch.testing.assert_close(e.grad, (E.sin() * slope).detach())

made_from = torch.pi * (2 * torch.rand(N, dtype=torch.float64) - 1)
with torch.no_grad():
    again, _ = ti.root(kepler, made_from, (kepler(made_from, 0.0, e), e), batch_ndim=1, batched=(True, True))
assert (again - made_from).abs().max() < 1e-7

# %%
# Colebrook's equation
# --------------------
# The friction factor :math:`f` of turbulent flow in a pipe depends on the Reynolds number and on how rough the wall is,
#
# .. math:: \frac{1}{\sqrt f} = -2 \log_{10}\!\left(\frac{\varepsilon/D}{3.7} + \frac{2.51}{\mathrm{Re}\,\sqrt f}\right).
#
# The unknown is :math:`z = 1/\sqrt f`, in which the equation is nearly linear.

reynolds, roughness = torch.meshgrid(
    torch.logspace(3.6, 8, 450, dtype=torch.float64),
    torch.logspace(-6, -1.3, 450, dtype=torch.float64),
    indexing="xy",
)
roughness = roughness.clone().requires_grad_()


def colebrook(z, reynolds, roughness):
    return z + 2 * torch.log10(roughness / 3.7 + 2.51 * z / reynolds)


z, info = ti.root(colebrook, torch.full_like(reynolds, 7.0), (reynolds, roughness), batch_ndim=2, batched=(True, True))
friction = z**-2
friction.sum().backward()
print(info)

# %%
# Few know that this one does have a formula, with Wright's function :math:`\omega(x) = W(e^x)`. SciPy has that
# function.

a, b, k = roughness.detach() / 3.7, 2.51 / reynolds, np.log(10) / 2
exact = wrightomega(k * a / b + torch.log(k / b)) / k - a / b
torch.testing.assert_close(z.detach(), exact, rtol=1e-7, atol=0)

# %%
# Moody's diagram, and what it does not show: by how many per cent the friction grows with one per cent more of
# roughness. The left of the diagram does not care about the wall; on the right nothing else matters.

elasticity = (roughness.grad * roughness / friction).detach()
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
points = left.scatter(M.detach()[::10], E.detach()[::10], c=e.detach()[::10], s=0.5, cmap="viridis")
figure.colorbar(points, ax=left, label="eccentricity $e$")
left.set(xlabel="mean anomaly $M$", ylabel="eccentric anomaly $E$", title="Kepler: one point in ten")

colors = right.pcolormesh(reynolds, friction.detach(), elasticity, cmap="magma", shading="gouraud", rasterized=True)
for i in range(0, 450, 45):
    right.plot(reynolds[i], friction[i].detach(), "w", lw=0.5)
figure.colorbar(colors, ax=right, label=r"$\partial\log f\,/\,\partial\log(\varepsilon/D)$")
right.set(
    xscale="log",
    yscale="log",
    xlabel="Reynolds number",
    ylabel="friction factor $f$",
    title="Colebrook: the friction of 202,500 pipes",
)
plt.show()
