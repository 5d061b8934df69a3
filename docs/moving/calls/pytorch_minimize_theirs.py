import torch
from torchmin import minimize

x = torch.tensor([1.0, 30.0]).double()


def phi(z, x):
    return (
        (x[0] - z[0]) ** 2
        + x[1] * (z[1] - z[0] ** 2) ** 2
        + z[1] ** 2
    )


def loss(x):
    # its value only: torchmin's result is detached
    result = minimize(
        lambda z: phi(z, x),
        torch.zeros(2).double(),
        method="bfgs",
        tol=1e-10,
    )
    return result.x.square().sum()
