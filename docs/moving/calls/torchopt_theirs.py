import torch
import torchopt
from torchopt.diff import implicit

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


def stationary(z, x):
    return torch.func.grad(inner)(z, x)


@implicit.custom_root(stationary, argnums=1, has_aux=False)
def solve(z0, x):
    z = z0.clone().requires_grad_()
    optimizer = torchopt.SGD([z], lr=0.05)
    for _ in range(400):
        with torch.enable_grad():
            objective = inner(z, x)
        optimizer.zero_grad()
        objective.backward(inputs=[z])
        optimizer.step()
    return z


def loss(x):
    return solve(torch.zeros(2).double(), x).square().sum()
