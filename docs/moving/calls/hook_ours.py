import torch

import torchimplicit as ti

W = torch.tensor(
    [[0.4, -0.3, 0.1], [0.2, 0.3, -0.4], [-0.1, 0.5, 0.2]]
).double()
x = torch.tensor(
    [[0.5, -1.0, 0.3], [2.0, 0.1, -0.4]]
).double()


def f(z, x):
    return torch.tanh(z @ W.T + x)


def layer(x):
    z, info = ti.fixed_point(
        f, torch.zeros_like(x), (x,), batch_ndim=1
    )
    return z


def loss(x):
    return layer(x).square().sum()
