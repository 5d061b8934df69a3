import torch
from qpth.qp import QPFunction

Q = torch.tensor(
    [[2.0, 0.3, 0.0], [0.3, 1.5, 0.1], [0.0, 0.1, 1.0]]
).double()
G, h = (
    torch.cat([torch.eye(3), -torch.eye(3)]).double(),
    torch.full((6,), 0.6).double(),
)
A, b = torch.ones(1, 3).double(), torch.ones(1).double()
x = torch.tensor(
    [[-1.0, 0.4, -0.2], [0.3, -2.0, 0.1]]
).double()  # the linear terms of two programs


def loss(x):
    z = QPFunction(verbose=-1, eps=1e-12)(Q, x, G, h, A, b)
    return z.square().sum()
