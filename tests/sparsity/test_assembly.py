"""Entries from coloured products, and factors of them, against dense linear algebra."""

from __future__ import annotations

import math

import pytest
import scipy.sparse as sparse
import torch
from torch import Tensor

from torchimplicit.linear import GMRES, Jacobian, Memory, Sparse
from torchimplicit.linear.multigrid import multigrid_of
from torchimplicit.linear.pattern import Pattern
from torchimplicit.sparsity.assembly import AT_ONCE, Assembly, colour
from torchimplicit.sparsity.construction import given

torch.manual_seed(0)
N, BATCH = 30, 3
MASKS = {
    "a band": torch.ones(N, N).tril(1).triu(-2),
    "a full row": torch.cat([torch.ones(1, N), torch.eye(N)[1:]]),
    "a full column": torch.cat([torch.ones(N, 1), torch.eye(N)[:, 1:]], 1),
    "anywhere": ((torch.rand(N, N) < 0.15) | (torch.eye(N) > 0)).double(),
}


def matrices(name: str) -> Tensor:
    torch.manual_seed(1)
    return (torch.randn(BATCH, N, N, dtype=torch.float64) + 6 * torch.eye(N)) * MASKS[name]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_all_entries_come_from_a_product_for_each_colour(
    name: str, one_by_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if one_by_one:
        monkeypatch.setattr("torchimplicit.sparsity.assembly.AT_ONCE", 0)
    A = matrices(name)
    assert AT_ONCE
    z = torch.randn(BATCH, N, dtype=torch.float64)
    jacobian = Jacobian(lambda z: (A @ z.sin().unsqueeze(-1)).squeeze(-1), z)
    assembly = Assembly(given(MASKS[name], N))
    values = assembly.values(jacobian, z)
    pattern = assembly.pattern
    torch.testing.assert_close(values, (A * z.cos().unsqueeze(1))[:, pattern.rows, pattern.columns])
    assert jacobian.products == assembly.colours < N / 2


@pytest.mark.parametrize(("sides", "least"), [((40,), 3), ((16, 16), 5), ((16, 17), 5), ((6, 7, 8), 7)])
def test_stencils_take_few_colours(sides: tuple[int, ...], least: int) -> None:
    pattern = mesh(*sides)
    for by_rows in (True, False):
        seeds = colour(pattern, by_rows)
        crossing = pattern.columns if by_rows else pattern.rows
        own = seeds[pattern.rows if by_rows else pattern.columns]
        assert len(torch.stack([crossing, own]).unique(dim=1).mT) == len(pattern.rows)  # no two of one colour meet
        assert least <= int(seeds.amax()) + 1 <= least + 6


def test_colours_of_a_full_row_or_column_stay_few() -> None:
    for name, by_rows in (("a full row", True), ("a full column", False)):
        assembly = Assembly(given(MASKS[name], N))
        assert assembly.by_rows is by_rows
        assert assembly.colours == 2


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_factors_of_what_is_assembled_serve_a_batch_and_its_adjoint(name: str, adjoint: bool) -> None:
    A, memory = matrices(name), Memory(MASKS[name])
    jacobian = Jacobian(lambda z: (A @ z.unsqueeze(-1)).squeeze(-1), torch.zeros(BATCH, N, dtype=torch.float64))
    memory.learn(memory.entries(jacobian))
    assert memory.inverse is not None
    b = torch.randn(2, BATCH, N, dtype=torch.float64)
    x = torch.linalg.solve(A.mT if adjoint else A, b.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(memory.inverse.solve(b, adjoint), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wind", [0.0, 0.5])
def test_a_multigrid_cycle_is_near_the_inverse(dtype: torch.dtype, wind: float) -> None:
    pytest.importorskip("pyamg")
    line = sparse.diags_array([-1.0 - wind, 2.0, -1.0 + wind], offsets=[-1, 0, 1], shape=(30, 30))
    A = sparse.kronsum(line, line).tocsr()
    matrix = Sparse(torch.from_numpy(A.data).to(dtype).unsqueeze(0), given(A, 900))
    cycle = multigrid_of(matrix)
    assert cycle is not None
    solver = GMRES(preconditioner=cycle).factorize(Sparse(A.astype("f4" if dtype == torch.float32 else "f8")))
    b = torch.randn(1, 900, dtype=dtype)
    for adjoint in (False, True):
        result = solver.iterate(b, adjoint, rtol=1e-4)
        assert result.converged.all()
        assert int(result.steps.max()) < 15
        x = torch.from_numpy(sparse.linalg.spsolve(A.T if adjoint else A, b[0].double().numpy()))
        torch.testing.assert_close(result.x[0].double(), x, rtol=1e-2, atol=1e-3 * float(x.abs().max()))


def mesh(*sides: int) -> Pattern:
    """Of the Laplacian on a mesh."""
    total = sparse.csr_array((1, 1))
    for m in sides:
        line = sparse.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(m, m))
        total = sparse.kronsum(total, line).tocsr()
    return given(total, math.prod(sides))


def test_widths_tell_chains_and_meshes_apart() -> None:
    assert mesh(200).width == 1
    assert 20 <= mesh(20, 20).width <= 30
    assert mesh(8, 8, 8).width >= 36
