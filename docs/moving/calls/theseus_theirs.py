import theseus as th
import torch

t = torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0]]).double()
x = torch.tensor(
    [[2.0, 1.1, 0.8, 0.3, 0.25]]
).double()  # the data

z = th.Vector(2, name="z", dtype=torch.float64)
data = th.Variable(x, name="data")


def residuals(optim_vars, aux_vars):
    (z,), (data,) = optim_vars, aux_vars
    return (
        z.tensor[:, :1] * torch.exp(-z.tensor[:, 1:] * t)
        - data.tensor
    )


objective = th.Objective(dtype=torch.float64)
weight = th.ScaleCostWeight(torch.ones(1, 1).double())
objective.add(
    th.AutoDiffCostFunction(
        [z],
        residuals,
        5,
        cost_weight=weight,
        aux_vars=[data],
    )
)
optimizer = th.LevenbergMarquardt(
    objective,
    max_iterations=50,
    abs_err_tolerance=0.0,
    rel_err_tolerance=1e-16,
)
layer = th.TheseusLayer(optimizer)


def loss(x):
    values, info = layer.forward(
        {"z": torch.ones(1, 2).double(), "data": x},
        optimizer_kwargs={"backward_mode": "implicit"},
    )
    return values["z"].square().sum()
