import torch

import torchimplicit as ti

W = torch.tensor(
    [[0.4, -0.3, 0.1], [0.2, 0.3, -0.4], [-0.1, 0.5, 0.2]]
).double()
x = torch.tensor([0.5, -1.0, 0.3]).double()


def g(z, x):
    return z**3 + z + W @ z - x


def loss(x):
    z, info = ti.root(
        g,
        torch.zeros(3).double(),
        (x,),
        solver="broyden",
        rtol=1e-10,
    )
    return z.square().sum()
