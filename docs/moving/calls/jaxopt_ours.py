import torch
from torch.nn.functional import softplus

import torchimplicit as ti

A = torch.tensor(
    [[1.0, 0.2], [0.3, -1.0], [0.5, 0.7], [-0.4, 1.1]]
).double()
y = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
x = torch.tensor(
    [-1.0, 0.5]
).double()  # logarithms of the penalties


def inner(z, x):
    return (
        softplus(-y * (A @ z)).sum()
        + (x.exp() * z**2).sum() / 2
    )


options = {
    "solver": "lbfgs",
    "rtol": 1e-10,
    "max_steps": 200,
}


def loss(x):
    z, info = ti.minimize(
        inner, x.new_zeros(2), (x,), **options
    )
    return z.square().sum()
