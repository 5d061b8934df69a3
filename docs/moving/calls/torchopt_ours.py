import torch

import torchimplicit as ti

A = torch.tensor(
    [[1.0, 0.2], [0.3, -1.0], [0.5, 0.7], [-0.4, 1.1]]
).double()
b = torch.tensor([1.0, -1.0, 0.5, 0.3]).double()
x = torch.tensor([0.4, 1.5]).double()


def inner(z, x):
    return (
        (A @ z - b).square().sum()
        + (x * z**2).sum()
        + (z**4).sum()
    )


solver = ti.interop.TorchOptimizer(torch.optim.SGD, lr=0.05)


def loss(x):
    z, info = ti.minimize(
        inner,
        x.new_zeros(2),
        (x,),
        solver=solver,
        max_steps=400,
    )
    return z.square().sum()
