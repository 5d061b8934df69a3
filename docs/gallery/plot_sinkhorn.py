r"""
Learning a metric from who was matched: Sinkhorn in the log domain
===================================================================

Entropic optimal transport matches two groups at least cost. Here it is turned round: the matching has been observed,
and the cost behind it is sought (Galichon and Salanié, 2022, call it matching markets). The gradient has to come
through Sinkhorn's iteration, whose fixed point is one only up to a constant.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import torchimplicit as ti

torch.manual_seed(0)
n, eps = 40, 0.5

# %%
# Sinkhorn's iteration as a fixed point
# -------------------------------------
# The plan is :math:`P_{ij} = e^{(a_i + b_j - C_{ij})/\varepsilon}`, with potentials :math:`a` and :math:`b` such that
# its rows and columns have the given sums, here :math:`1/n`. In the log domain nothing overflows:
#
# .. math:: b_j = -\varepsilon\log\sum_i e^{(a_i - C_{ij})/\varepsilon} - \varepsilon\log n, \qquad a_i \text{ likewise}.


def potentials(C, pinned=True, **options):
    log_share = eps * torch.log(torch.tensor(n, dtype=C.dtype))

    def other(a):
        return -eps * torch.logsumexp((a.unsqueeze(1) - C) / eps, 0) - log_share

    def sweep(a):
        a = -eps * torch.logsumexp((other(a) - C) / eps, 1) - log_share
        return a - a.mean() if pinned else a

    a, _ = ti.fixed_point(sweep, torch.zeros(n, dtype=C.dtype), rtol=1e-10, **options)
    return a, other(a)


def plan(C, **options):
    a, b = potentials(C, **options)
    return torch.exp((a.unsqueeze(1) + b - C) / eps)


# %%
# The gauge
# ---------
# Not pinned, with :math:`a` also :math:`a + c` is a fixed point: :math:`I - \partial f/\partial a` is singular and
# the derivative of :math:`a` does not exist. The plan does not see :math:`c`, and its derivative does exist: the
# backward finds that nobody asks about the singular direction, and the two ways agree. A loss of :math:`a` itself does
# ask, and is refused. Pinned, by its mean, everything is unique.

points = torch.randn(n, 2, dtype=torch.float64)
partners = torch.randn(n, 2, dtype=torch.float64)
true_metric = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)


def cost(metric):
    difference = points.unsqueeze(1) - partners
    return torch.einsum("ijk,kl,ijl->ij", difference, metric, difference)


metric = torch.eye(2, dtype=torch.float64, requires_grad=True)
probe = torch.randn(n, n, dtype=torch.float64)
gradient, free = (
    torch.autograd.grad((plan(cost(metric), pinned=pinned) * probe).sum(), metric)[0] for pinned in (True, False)
)
torch.testing.assert_close(gradient, free)

refused = None
try:
    a, _ = potentials(cost(metric), pinned=False, on_failure="raise")
    a.square().sum().backward()
except ti.ConvergenceError as error:
    refused = error
print(refused)
assert "singular" in str(refused)

# %%
# Against NumPy, which knows nothing of all this: the plain iteration, a thousand times, and differences.


def with_numpy(metric):
    C = cost(torch.as_tensor(metric)).numpy()
    K, v = np.exp(-C / eps), np.ones(n)
    for _ in range(1000):
        u = 1 / n / (K @ v)
        v = 1 / n / (K.T @ u)
    return u[:, None] * K * v


h = 1e-5
for i in range(2):
    for j in range(2):
        bump = np.zeros((2, 2))
        bump[i, j] = h
        moved = ((with_numpy(np.eye(2) + bump) - with_numpy(np.eye(2) - bump)) * probe.numpy()).sum() / (2 * h)
        assert abs(gradient[i, j].item() - moved) < 1e-5 * (1 + abs(moved))

# %%
# Learning the metric
# -------------------
# The observed plan is NumPy's, for the true metric. What is minimised is its Kullback–Leibler divergence from the
# layer's.

observed = torch.from_numpy(with_numpy(true_metric.numpy()))
root = torch.eye(2, dtype=torch.float64, requires_grad=True)  # metric = root rootᵀ
optimizer = torch.optim.LBFGS([root], max_iter=50, line_search_fn="strong_wolfe", tolerance_grad=1e-12)
losses = []


def closure():
    optimizer.zero_grad()
    loss = (observed * (observed / plan(cost(root @ root.T))).log()).sum()
    loss.backward()
    losses.append(loss.item())
    return loss


optimizer.step(closure)
found = (root @ root.T).detach()
print(f"{len(losses)} evaluations; metric found:\n{found}")
torch.testing.assert_close(found, true_metric, rtol=1e-3, atol=1e-3)

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
start_plan, end_plan = plan(cost(torch.eye(2, dtype=torch.float64))), plan(cost(found))
for axes, shown, title in ((left, start_plan, "Plan, Euclidean metric"), (middle, observed, "Plan, observed")):
    axes.scatter(*points.T, s=12, c="C0")
    axes.scatter(*partners.T, s=12, c="C1")
    for i, j in (shown > 0.12 / n).nonzero().tolist():
        strength = min(1.0, 1.5 * n * shown[i, j].item())
        axes.plot(*torch.stack([points[i], partners[j]]).T, "k", alpha=strength, lw=1)
    axes.set(aspect="equal", title=title)
angle = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
circle = torch.stack([angle.cos(), angle.sin()])
for matrix, style, label in (
    (true_metric, "k", "true"),
    (found, "C3--", "learned"),
    (torch.eye(2).double(), "C7:", "start"),
):
    right.plot(*torch.linalg.solve(torch.linalg.cholesky(matrix).T, circle), style, label=label)
right.set(aspect="equal", title="Unit circles of the metrics")
right.legend()
plt.show()
