import torch
from torchdeq import get_deq

W = torch.tensor(
    [[0.4, -0.3, 0.1], [0.2, 0.3, -0.4], [-0.1, 0.5, 0.2]]
).double()
x = torch.tensor(
    [[0.5, -1.0, 0.3], [2.0, 0.1, -0.4]]
).double()

deq = get_deq(
    f_solver="anderson",
    f_tol=1e-10,
    b_tol=1e-10,
    f_max_iter=60,
    b_max_iter=60,
    ift=True,
)
deq.train()  # in eval() there is no gradient


def loss(x):
    z_out, info = deq(
        lambda z: torch.tanh(z @ W.T + x),
        torch.zeros_like(x),
    )
    return z_out[-1].square().sum()
