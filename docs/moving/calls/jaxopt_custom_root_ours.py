import torch

import torchimplicit as ti

x = torch.tensor([0.5, 2.0, 7.0]).double()


def condition(z, x):
    return z**3 + z - x


@ti.implicit(condition)
def solve(x):  # by any means
    z = torch.ones_like(x)
    for _ in range(60):
        z = z - (z**3 + z - x) / (3 * z**2 + 1)
    return z


def loss(x):
    return solve(x).square().sum()
