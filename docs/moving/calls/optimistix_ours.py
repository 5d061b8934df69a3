import torch

import torchimplicit as ti

t = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0]).double()
x = torch.tensor(
    [2.0, 1.1, 0.8, 0.3, 0.25]
).double()  # the data


def residuals(z, x):
    return z[0] * torch.exp(-z[1] * t) - x


options = {
    "solver": "levenberg_marquardt",
    "rtol": 1e-10,
    "on_failure": "raise",
}


def loss(x):
    z, info = ti.least_squares(
        residuals, x.new_ones(2), (x,), **options
    )
    return z.square().sum()
