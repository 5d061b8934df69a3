import torch

import torchimplicit as ti

W = torch.tensor(
    [[0.4, -0.3, 0.1], [0.2, 0.3, -0.4], [-0.1, 0.5, 0.2]]
).double()
x = torch.tensor(
    [[0.5, -1.0, 0.3], [2.0, 0.1, -0.4]]
).double()

options = {
    "solver": "anderson",
    "rtol": 1e-10,
    "max_steps": 60,
}
# the gradient does not depend on train() or eval()


def loss(x):
    z, info = ti.fixed_point(
        lambda z: torch.tanh(z @ W.T + x),
        torch.zeros_like(x),
        batch_ndim=1,
        **options,
    )
    return z.square().sum()
