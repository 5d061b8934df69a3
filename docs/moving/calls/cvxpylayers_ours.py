import torch

import torchimplicit as ti

L = torch.tensor(
    [[1.0, 0.2, 0.0], [0.0, 1.2, 0.3], [0.0, 0.0, 0.9]]
).double()
x = torch.tensor([0.9, -0.4, 0.2]).double()

Q, A, b = (
    L.T @ L,
    torch.ones(1, 3).double(),
    torch.ones(1).double(),
)
box = {
    "lower": torch.full((3,), -0.6).double(),
    "upper": torch.full((3,), 0.6).double(),
}


def loss(x):
    z, info = ti.quadratic_program(Q, x, A=A, b=b, **box)
    return z.square().sum()
