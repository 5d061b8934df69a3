r"""
A pattern that makes itself, and what moves it
==============================================

In the Brusselator two chemicals react and spread, the second faster than the first:

.. math:: u_t = d\,\Delta u + a - (b + 1) u + u^2 v, \qquad v_t = \Delta v + b u - u^2 v .

The even mixture :math:`u = a, v = b / a` is a steady state, and loses its stability where
:math:`b > (1 + a \sqrt d)^2`: a pattern grows out of any ripple (Turing, 1952). How does the finished pattern depend on the
chemistry? It is the root of a system with 2,048 unknowns, so its derivative is one sparse linear solve.
"""

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
m, length = 32, 5.0
dx = length / m
a = torch.tensor(3.0, requires_grad=True)
b = torch.tensor(7.0, requires_grad=True)
d = torch.tensor(0.2, requires_grad=True)


def laplacian(w):
    """Five points, nothing flows through the walls."""
    padded = torch.nn.functional.pad(w[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    neighbours = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]
    return (neighbours - 4 * w) / dx**2


def rate(z, a, b, d):
    u, v = z
    made = u * u * v
    return torch.stack([d * laplacian(u) + a - (b + 1) * u + made, laplacian(v) + b * u - made])


threshold = (1 + a * d.sqrt()) ** 2
print(f"b is {b:.1f}, patterns grow from {threshold:.2f}")
assert b > threshold

# %%
# Out of a ripple
# ---------------
# From the even mixture with a faint wave and some noise, in implicit steps. All of them keep what they know of the
# Jacobian in one place: its pattern, found at the first step, and factors as long as they serve.

memory = ti.linear.Memory()


def step(z, dt):
    return ti.root(lambda new: new - z - dt * rate(new, a, b, d), z, sparsity=memory, rtol=1e-5).value


even = torch.stack([a.detach().expand(m, m), (b / a).detach().expand(m, m)])
x = (torch.arange(m) + 0.5) / m
waves = torch.cos(4 * torch.pi * x)
z = even + 0.3 * (waves[:, None] + waves) + 0.01 * torch.randn(2, m, m)
pictures = []
with torch.no_grad():
    for k in range(55):
        if k in (0, 5):
            pictures.append(z[0])
        z = step(z, dt=0.5 if k < 40 else 4.0)  # short while spots and stripes compete; here the stripes win
print(memory)

# %%
# The steady state
# ----------------

pattern, info = ti.root(rate, z, (a, b, d), rtol=1e-10)
print(info)
print(info.linear)
assert info.converged
assert (pattern[0] - a).abs().max() > 1  # and not the even mixture

# %%
# Its contrast, and the gradient in all three numbers of the chemistry, from one linear solve:


def contrast(pattern):
    return pattern[0].std()


gradient = torch.autograd.grad(contrast(pattern), (a, b, d))

# %%
# Against finite differences, each of two more solves that begin at the pattern.

for name, x, slope in zip("abd", (a, b, d), gradient):
    sides = []
    for h in (1e-5, -1e-5):
        moved = [y + h if y is x else y for y in (a, b, d)]
        with torch.no_grad():
            sides.append(contrast(ti.root(rate, pattern.detach(), tuple(moved), rtol=1e-12).value))
    difference = (sides[0] - sides[1]) / 2e-5
    print(f"in {name}: {slope:.6f}, by differences {difference:.6f}")
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-6)

# %%
# Forward mode gives the derivative of the whole picture in one number. The two ways have to agree on the contrast.

_, (moves, _) = torch.func.jvp(
    lambda b: ti.root(rate, pattern.detach(), (a.detach(), b, d.detach()), rtol=1e-10).value,
    (b.detach(),),
    (torch.ones(()),),
)
picture = pattern[0].detach().requires_grad_()
(weights,) = torch.autograd.grad(picture.std(), picture)
torch.testing.assert_close((moves * weights).sum(), gradient[1], rtol=1e-5, atol=0)

figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
titles = ["the start", "after 5 steps", "the steady pattern", "its derivative in $b$"]
for axis, shown, title in zip(axes, [pictures[0], pictures[1], pattern[0].detach(), moves], titles):
    axis.imshow(shown, cmap="RdBu" if shown is moves else "magma")
    axis.set(title=title, xticks=[], yticks=[])
plt.show()
