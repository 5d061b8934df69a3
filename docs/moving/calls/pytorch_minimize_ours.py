import torch

import torchimplicit as ti

x = torch.tensor([1.0, 30.0]).double()


def phi(z, x):
    return (
        (x[0] - z[0]) ** 2
        + x[1] * (z[1] - z[0] ** 2) ** 2
        + z[1] ** 2
    )


def loss(x):
    z, info = ti.minimize(
        phi,
        torch.zeros(2).double(),
        (x,),
        solver="bfgs",
        rtol=1e-10,
    )
    return z.square().sum()
