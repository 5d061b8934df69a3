r"""
An equilibrium on a graph of a hundred thousand nodes
=====================================================

Opinions in a network: everyone listens to the friends and, more or less stubbornly, to themselves,

.. math:: z_i = \tanh\Big(\alpha \sum_j A_{ij} z_j + x_i\Big),

and what is observed is where this settles. The layer finds that, and how much each person's own conviction :math:`x_i`
moves the mean of all: the gradient of an equilibrium with a hundred thousand unknowns, by one more sparse linear system.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch

import torchimplicit as ti

# %%
# The graph
# ---------
# A hundred thousand nodes listen to ten others each. Who is heard is uneven: a few are heard by thousands.

nodes, heard = 100_000, 10
rng = np.random.default_rng(0)
listener = np.repeat(np.arange(nodes), heard)
speaker = (nodes * rng.random(nodes * heard) ** 3).astype(np.int64)
graph = scipy.sparse.csr_array((np.full(nodes * heard, 1 / heard), (listener, speaker)), shape=(nodes, nodes))
print(f"{nodes:,} nodes, {len(speaker):,} edges; the loudest is heard by {np.bincount(speaker).max():,}")
A = ti.linear.Sparse(graph)  # the transposed matrix is stored once, for the backward

alpha = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
x = torch.from_numpy(rng.normal(0.1, 0.5, nodes)).requires_grad_()


def listen(z, alpha, x):
    return torch.tanh(alpha * A.matvec(z) + x)


# %%
# The equilibrium, and the gradient of its mean
# ---------------------------------------------

start = time.perf_counter()
z, info = ti.fixed_point(listen, torch.zeros(nodes, dtype=torch.float64), (alpha, x), rtol=1e-10)
mean = z.mean()
mean.backward()
print(f"{time.perf_counter() - start:.2f} s for the equilibrium and its gradient")
print(info)
print(info.adjoint)

# %%
# The same by hand: the loop in NumPy, and the sparse system :math:`(I - J)^\top u = 1/n` by SciPy.

by_hand, pull = np.zeros(nodes), x.detach().numpy()
for _ in range(200):
    by_hand = np.tanh(0.8 * (graph @ by_hand) + pull)
np.testing.assert_allclose(z.detach().numpy(), by_hand, rtol=0, atol=1e-9)

slope = 1 - by_hand**2
system = scipy.sparse.eye_array(nodes) - 0.8 * scipy.sparse.diags_array(slope) @ graph
u, failed = scipy.sparse.linalg.bicgstab(system.T.tocsr(), np.full(nodes, 1 / nodes), rtol=1e-12, atol=0)
assert not failed
np.testing.assert_allclose(x.grad.numpy(), slope * u, rtol=1e-7, atol=1e-14)
np.testing.assert_allclose(alpha.grad.item(), u @ (slope * (graph @ by_hand)), rtol=1e-8)

# %%
# Who moves the mean? Those who are heard, and who are not sure already.

influence = nodes * x.grad
audience = np.bincount(speaker, minlength=nodes)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.hist(z.detach().numpy(), 100)
left.set(xlabel="opinion", ylabel="people", title="Where it settles")
points = right.scatter(audience[::10] + 1, influence[::10], c=z.detach().abs()[::10], s=1, cmap="viridis")
figure.colorbar(points, ax=right, label="certainty $|z|$")
right.set(xscale="log", yscale="log", xlabel="listeners + 1", ylabel="influence on the mean", title="Who moves it")
plt.show()
