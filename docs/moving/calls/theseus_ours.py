import torch

import torchimplicit as ti

t = torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0]]).double()
x = torch.tensor(
    [[2.0, 1.1, 0.8, 0.3, 0.25]]
).double()  # the data


def residuals(z, data):
    return z[:, :1] * torch.exp(-z[:, 1:] * t) - data


options = {
    "solver": "levenberg_marquardt",
    "batch_ndim": 1,
    "max_steps": 50,
}


def loss(x):
    z, info = ti.least_squares(
        residuals,
        torch.ones(1, 2).double(),
        (x,),
        **options,
    )
    return z.square().sum()
