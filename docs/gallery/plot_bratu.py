r"""
Heat that feeds itself: Bratu's equation in the plane
=====================================================

A reaction that gives off heat and goes faster the hotter it is: :math:`-\Delta u = \lambda e^u` on a square whose edge is kept cold.
Up to a critical :math:`\lambda` there is a steady state; beyond, it burns. On a grid that is a root of thousands of unknowns with a
sparse Jacobian, which :func:`torchimplicit.root` finds by itself: its pattern, a few products that give its entries, and factors that
serve all steps and the derivative.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.sparse import diags_array, eye_array, kron
from scipy.sparse.linalg import splu
from torch.nn.functional import pad

import torchimplicit as ti

torch.set_default_dtype(torch.float64)
m = 64
h = 1 / (m + 1)


def bratu(u, rate):
    """What is missing to a steady state, (m, m); the rate is λ, a number or one for each point."""
    p = pad(u, (1, 1, 1, 1))
    laplacian = p[2:, 1:-1] + p[:-2, 1:-1] + p[1:-1, 2:] + p[1:-1, :-2] - 4 * u
    return laplacian + h**2 * rate * u.exp()


# %%
# Up to the critical rate
# -----------------------
# The hotter branch and the colder one meet at the critical λ, and there the temperature rises without bound with λ: like
# :math:`1/\sqrt{\lambda_c - \lambda}`. So the derivative to the power −2 is a straight line near it, and tells where it is.

rates, tops, slopes = [1.0, 2.0, 3.0, 4.0, 5.0, 5.8, 6.3, 6.6, 6.7, 6.75, 6.78, 6.8], [], []
u = torch.zeros(m, m)
for value in rates:
    rate = torch.tensor(value, requires_grad=True)
    u, info = ti.root(bratu, u.detach(), (rate,), rtol=1e-10)
    assert info.converged
    top = u.max()
    tops.append(top.item())
    slopes.append(torch.autograd.grad(top, rate)[0].item())
last = np.polyfit(rates[-3:], np.array(slopes[-3:]) ** -2.0, 1)
critical = -last[1] / last[0]
print(f"critical rate {critical:.4f}; {info}")
assert (
    abs(critical - 6.808) < 0.01
)  # Glowinski, Keller and Reinhart, SIAM J. Sci. Stat. Comput. 6 (1985), on finer meshes

# %%
# Which point should be cooled?
# -----------------------------
# The derivative of the highest temperature in the rate at every point, by one linear system with the transpose; beside it the same
# by hand, with the matrix written out.

rate = torch.full((m, m), 6.0, requires_grad=True)
u, _ = ti.root(bratu, torch.zeros(m, m), (rate,), rtol=1e-10)
(influence,) = torch.autograd.grad(u.max(), rate)

line = diags_array([np.ones(m - 1), -2 * np.ones(m), np.ones(m - 1)], offsets=[-1, 0, 1])
heat = (h**2 * 6.0 * u.exp()).detach().numpy().ravel()
J = kron(line, eye_array(m)) + kron(eye_array(m), line) + diags_array(heat)
pick = np.zeros(m * m)
pick[u.argmax().item()] = 1
by_hand = -splu(J.T.tocsc()).solve(pick) * heat / 6.0
np.testing.assert_allclose(influence.numpy().ravel(), by_hand, rtol=1e-6, atol=1e-12)

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.5))
left.plot(rates, tops, "o-")
left.axvline(critical, color="gray", linestyle=":")
left.set(xlabel="λ", ylabel="highest temperature")
figure.colorbar(middle.imshow(u.detach(), extent=(0, 1, 0, 1)), ax=middle)
middle.set_title("temperature at λ = 6")
figure.colorbar(right.imshow(influence, extent=(0, 1, 0, 1)), ax=right)
right.set_title("influence of the rate on the highest")
figure.tight_layout()
plt.show()
