"""The pattern that is found holds every entry of the Jacobian, of which autograd, row by row, is the judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from torchimplicit.condition import Kind
from torchimplicit.linear.pattern import Pattern
from torchimplicit.problems.least_squares import LeastSquares
from torchimplicit.problems.minimize import Minimum
from torchimplicit.sparsity.construction import given
from torchimplicit.sparsity.detection import NoPattern, detect

N = 36
STENCIL = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 2, 0]], dtype=torch.float64)[None, None]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def some(shape: tuple[int, ...], density: float = 1.0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64) * (torch.rand(shape) < density)


INDEX = torch.tensor([(7 * i + i * i) % N for i in range(N)])  # with repetitions
SPARSE = some((N, N), 0.1)
KERNEL, GROUPS = some((2, 2, 3)), some((4, 1, 3))


def five_points(z: Tensor) -> Tensor:
    u = functional.pad(z.view(-1, 6, 6), (1, 1, 1, 1))
    return (u[:, 2:, 1:-1] - 3 * u[:, :-2, 1:-1] + u[:, 1:-1, 2:] - u[:, 1:-1, :-2]).reshape(z.shape) - z.exp()


def two_layers(z: Tensor) -> Tensor:
    hidden = torch.tanh(functional.conv1d(z.view(-1, 2, 18), KERNEL, padding=1))
    return functional.conv1d(hidden, KERNEL, padding=2, dilation=2).reshape(z.shape)


def written(z: Tensor) -> Tensor:
    out = torch.zeros_like(z)
    out[:, 1:-1] = z[:, 2:] - 2 * z[:, 1:-1] + z[:, :-2]
    out[:, 0] = z[:, 0] ** 2
    out[:, -1] += z[:, -2]
    return out


def through_views(z: Tensor) -> Tensor:
    y = z.clone()
    y[:, ::2].mul_(z[:, 1::2])
    rows = y.add_(1).view(-1, 6, 6)
    rows[:, 0] = 0
    rows[:, 1] = z[:, :6]
    return y


def branching(z: Tensor) -> Tensor:
    return z * z.roll(1, 1) if float(z.sum()) > 0 else z - z.roll(2, 1)


def on_rows(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of matrices (B, 6, 6) of unknowns."""
    return lambda z: f(z.view(-1, 6, 6)).reshape(z.shape)


EXACT = {
    "slices and pads": five_points,
    "walls": on_rows(lambda u: functional.pad(u, (1, 1, 1, 1), mode="replicate")[..., 2:, 1:-1] * u),
    "mirrors": on_rows(lambda u: functional.pad(u, (2, 2), mode="reflect")[..., 4:] - u.sin()),
    "a ring": on_rows(lambda u: functional.pad(u, (1, 1), mode="circular")[..., 2:] - u.sin()),
    "conv2d": lambda z: functional.conv2d(z.view(-1, 1, 6, 6), STENCIL, padding=1).reshape(z.shape),
    "conv1d": lambda z: functional.conv1d(z.view(-1, 2, 18), KERNEL, padding=1).reshape(z.shape),
    "grouped": lambda z: functional.conv1d(z.view(-1, 4, 9), GROUPS, padding=1, groups=4).reshape(z.shape),
    "two convolutions": two_layers,
    "rolls": lambda z: z * z.roll(1, -1) - z.roll(-2, -1),
    "indexing": lambda z: z[:, INDEX] ** 2 + z,
    "gather": lambda z: z.gather(1, INDEX.expand(z.shape)) + z.index_select(1, INDEX.flip(0)),
    "index_add": lambda z: z.index_add(1, INDEX, z.sin()),
    "scatter_add": lambda z: torch.zeros_like(z).scatter_add(1, INDEX.expand(z.shape), z.sin()) + z,
    "index_put": lambda z: torch.zeros_like(z).index_put((torch.zeros(N).long(), INDEX), z[0], accumulate=True) + z,
    "scatter": lambda z: torch.zeros_like(z).scatter(1, torch.arange(N - 1, -1, -1).expand(z.shape), z.sin()) + z,
    "writes": written,
    "writes through views": through_views,
    "control flow": branching,
    "a matrix with zeros": lambda z: torch.tanh(z @ SPARSE.T) - z,
    "a sparse matrix": lambda z: (SPARSE.to_sparse_coo() @ z.T).T + z,
    "torch.sparse.mm": lambda z: torch.sparse.mm(SPARSE.to_sparse_coo(), z.T).T + z,
    "sums": on_rows(lambda u: u.sum(1, keepdim=True) * u),
    "means": on_rows(lambda u: u - u.mean(2, keepdim=True)),
    "softmax": on_rows(lambda u: torch.softmax(u, -1)),
    "einsum": on_rows(lambda u: torch.einsum("bij,bjk->bik", u, u)),
    "where": lambda z: torch.where(z > 0, z.roll(1, 1), z * 2),
    "stacks": lambda z: torch.stack([z[:, ::2], z[:, 1::2]], -1).reshape(z.shape).flip(1) * z,
    "cats": lambda z: torch.cat([z[:, 9:], z[:, :9].square()], 1) + z,
}
WIDER = {  # what is found may have more entries than there are
    "amax": on_rows(lambda u: u + u.amax(2, keepdim=True)),
    "cumsum": on_rows(lambda u: u.cumsum(-1)),
    "maximum": lambda z: torch.maximum(z, z.roll(1, 1)),
    "detached": lambda z: z - z.roll(1, 1).detach(),
}


def jacobian_has(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Where the Jacobian of any system has an entry."""

    def of_system(b: int) -> Tensor:
        def g(row: Tensor) -> Tensor:
            return f(torch.cat([z[:b], row.unsqueeze(0), z[b + 1 :]]))[b]

        return torch.autograd.functional.jacobian(g, z[b])

    return torch.stack([of_system(b) for b in range(len(z))]).ne(0).any(0)


def found(pattern: Pattern) -> Tensor:
    dense = torch.zeros(pattern.m, pattern.n, dtype=torch.bool)
    dense[pattern.rows, pattern.columns] = True
    assert int(dense.sum()) == len(pattern.rows)
    return dense


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", EXACT)
def test_every_entry_is_found_and_no_other(name: str, batch: int) -> None:
    z = some((batch if name != "index_put" else 1, N))  # that is written for one system
    assert torch.equal(found(detect(EXACT[name], z)), jacobian_has(EXACT[name], z))


@pytest.mark.parametrize("name", WIDER)
def test_no_entry_is_missed_where_more_are_found(name: str) -> None:
    z = some((2, N))
    assert not (jacobian_has(WIDER[name], z) & ~found(detect(WIDER[name], z))).any()


def test_a_vector_times_a_csr_matrix() -> None:
    matrix, z = SPARSE.to_sparse_csr(), some((1, N))
    assert torch.equal(found(detect(lambda z: (matrix @ z[0]).unsqueeze(0), z)), SPARSE != 0)


OBJECTIVES = {
    "a chain": lambda z: ((z[:, 1:] - z[:, :-1]) ** 4).sum(-1) + z.exp().sum(-1),
    "mse_loss": lambda z: functional.mse_loss(z[:, 1:].sin(), z[:, :-1], reduction="none").sum(-1),
    "a convolution": lambda z: functional.conv2d(z.view(-1, 1, 6, 6), STENCIL, padding=1).pow(4).flatten(1).sum(-1),
    "walls": lambda z: (
        functional.pad(z.view(-1, 6, 6), (1, 1, 1, 1), mode="replicate").diff(dim=-1).pow(4).flatten(1).sum(-1)
    ),
    "mirrors": lambda z: (
        functional.pad(z.view(-1, 6, 6), (2, 2), mode="reflect").diff(dim=-1).pow(4).flatten(1).sum(-1)
    ),
    "indexing": lambda z: (z[:, INDEX] * z).sum(-1),
    "a sparse matrix": lambda z: ((SPARSE.to_sparse_coo() @ z.T) ** 4).sum(0),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_hessian_of_a_sum_is_as_sparse_as_its_terms(name: str) -> None:
    def gradient(z: Tensor) -> Tensor:
        z = z if z.requires_grad else z.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(OBJECTIVES[name](z).sum(), z, create_graph=True)[0]

    z = some((2, N))
    pattern = detect(lambda z: Minimum().residual(OBJECTIVES[name], z), z)
    assert torch.equal(found(pattern), jacobian_has(gradient, z))


def test_the_hessian_of_one_sum_over_thousands() -> None:
    n = 3000
    pattern = detect(lambda z: Minimum().residual(OBJECTIVES["a chain"], z), some((1, n)))
    assert len(pattern.rows) == 3 * n - 2


def test_the_hessian_of_a_fit() -> None:
    def r(z: Tensor) -> Tensor:
        return torch.cat([z[:, 1:] * z[:, :-1], z.sin()], 1)

    kind: Kind = LeastSquares()
    tridiagonal = torch.ones(N, N).tril(1).triu(-1) != 0
    assert torch.equal(found(detect(lambda z: kind.residual(r, z), some((2, N)))), tridiagonal)


def beside_a_sum(z: Tensor) -> Tensor:
    """Of numbers kept together one depends on everything, and has no part in the others; what was is written over."""
    rows = torch.cat([z * z.roll(1, 1), z.repeat(1, 40).sum(1, keepdim=True)], 1)
    y = torch.linalg.solve(SPARSE + 10 * torch.eye(N), z.T).T.clone()
    y.copy_(z)
    return rows[:, :N] + y


def test_what_is_not_known_does_no_harm_where_it_has_no_part() -> None:
    z = some((2, N))
    assert torch.equal(found(detect(beside_a_sum, z)), jacobian_has(beside_a_sum, z))


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda z: z + z.flip(0), "systems of the batch depend on each other"),
        (lambda z: torch.linalg.solve(SPARSE + 10 * torch.eye(N), z.T).T, "linalg_solve"),
        (lambda z: z - z.repeat(1, 40).mean(1, keepdim=True), "too many"),
        (lambda z: z.repeat(1, 4) @ torch.ones(4 * N, N, dtype=torch.float64), "dense matrix"),
    ],
)
def test_what_is_not_known_is_refused_by_name(f: Callable[[Tensor], Tensor], why: str) -> None:
    with pytest.raises(NoPattern, match=why):
        detect(f, some((2, N)))


def test_blocks_and_sparse_tensors_are_patterns() -> None:
    blocks = found(given([2, 3, 1], 6))
    assert torch.equal(blocks, torch.block_diag(torch.ones(2, 2), torch.ones(3, 3), torch.ones(1, 1)) != 0)
    for pattern in (SPARSE, SPARSE.to_sparse_coo(), SPARSE.to_sparse_csr()):
        assert torch.equal(found(given(pattern, N)), SPARSE != 0)


@pytest.mark.parametrize(
    ("pattern", "error", "says"),
    [
        (torch.eye(3), ValueError, r"shape \(3, 3\); expected \(6, 6\)"),
        ([2, 3], ValueError, r"add up to 5; expected 6"),
        (3.0, TypeError, "a float"),
        (torch.ones(6), ValueError, "1-D tensor"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(pattern: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        given(pattern, 6)
