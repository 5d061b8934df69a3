import cvxpy as cp
import torch

import torchimplicit as ti

L = torch.tensor(
    [[1.0, 0.2, 0.0], [0.0, 1.2, 0.3], [0.0, 0.0, 0.9]]
).double()
x = torch.tensor([0.9, -0.4, 0.2]).double()

z, linear = cp.Variable(3), cp.Parameter(3)
objective = cp.Minimize(
    cp.sum_squares(L.numpy() @ z) / 2 + linear @ z
)
problem = cp.Problem(
    objective, [z >= -0.6, z <= 0.6, cp.sum(z) == 1]
)
layer = ti.interop.cvxpy(
    problem, parameters=[linear], variables=[z]
)


def loss(x):
    (z,) = layer(x)
    return z.square().sum()
