"""Entries from coloured products, and factors of them, against dense linear algebra."""

from __future__ import annotations

import math

import pytest
import scipy.sparse as sparse
import torch
from torch import Tensor

from torchimplicit.linear import GMRES, Banded, Jacobian, Memory, Sparse
from torchimplicit.linear.multigrid import multigrid_of
from torchimplicit.linear.pattern import FullBand, Pattern
from torchimplicit.sparsity.assembly import AT_ONCE, Assembly, bands_of, colour
from torchimplicit.sparsity.construction import given
from torchimplicit.sparsity.detection import detect

torch.manual_seed(0)
N, BATCH = 30, 3
MASKS = {
    "a band": torch.ones(N, N).tril(1).triu(-2),
    "a full row": torch.cat([torch.ones(1, N), torch.eye(N)[1:]]),
    "a full column": torch.cat([torch.ones(N, 1), torch.eye(N)[:, 1:]], 1),
    "two full columns": torch.cat([torch.ones(N, 2), torch.ones(N, N).tril(1).triu(-1)[:, 2:]], 1),
    "two full rows": torch.cat([torch.ones(N, 2), torch.ones(N, N).tril(1).triu(-1)[:, 2:]], 1).T,
    "an arrow": torch.cat([torch.ones(1, N), torch.cat([torch.ones(N - 1, 1), torch.eye(N)[1:, 1:]], 1)]),
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


@pytest.mark.parametrize(("lower", "upper"), [(1, 1), (2, 1), (0, 3), (0, 0), (7, 2)])
def test_a_full_band_is_seen_and_filled_without_its_places(lower: int, upper: int) -> None:
    mask = torch.ones(N, N).tril(upper).triu(-lower)
    A = torch.randn(N, N, dtype=torch.float64) * mask
    pattern = detect(lambda z: z.sin() @ A.mT, torch.zeros(BATCH, N, dtype=torch.float64))
    for band in (pattern, given(mask, N)):
        assert isinstance(band, FullBand)
        assert (band.lower, band.upper, band.entries) == (lower, upper, int(mask.sum()))
        torch.testing.assert_close(torch.stack([band.rows, band.columns], -1), mask.nonzero())
        z = torch.randn(BATCH, N, dtype=torch.float64)
        jacobian = Jacobian(lambda z: z.sin() @ A.mT, z)
        bands = bands_of(band, jacobian, z)
        assert jacobian.products == lower + upper + 1
        torch.testing.assert_close(Banded(bands, lower, upper).to_dense(), A * z.cos().unsqueeze(1))


def test_a_band_with_a_hole_is_no_full_one() -> None:
    mask = torch.ones(N, N).tril(1).triu(-1)
    mask[4, 3] = 0
    pattern = detect(lambda z: z @ mask.double().mT, torch.zeros(1, N, dtype=torch.float64))
    for found in (pattern, given(mask, N)):
        torch.testing.assert_close(torch.stack([found.rows, found.columns], -1), mask.nonzero())
        assert not isinstance(found, FullBand)


@pytest.mark.parametrize(("name", "products"), [("two full columns", 5), ("two full rows", 5), ("an arrow", 3)])
def test_full_lines_are_found_alone(name: str, products: int) -> None:
    """One product for each of them, and for the rest as many as it takes without them; of an arrow both ends are full."""
    assert Assembly(given(MASKS[name], N)).colours == products


def test_an_arrow_of_50_000_unknowns_takes_three_products() -> None:
    n = 50_000
    i = torch.arange(1, n)
    index = torch.stack([torch.cat([i, 0 * i, i]), torch.cat([0 * i, i, i])])
    corner = torch.zeros(2, 1, dtype=torch.int64)
    pattern = torch.sparse_coo_tensor(
        torch.cat([corner, index], 1), torch.ones(3 * n - 2), (n, n), check_invariants=True
    )
    assembly = Assembly(given(pattern, n))
    assert assembly.colours == 3

    def g(z: Tensor) -> Tensor:
        first = z[:, :1] * z[:, 1:].sum(-1, keepdim=True)
        return torch.cat([first, z[:, 1:] ** 2 + 2 * z[:, :1]], -1)

    z = torch.randn(1, n, dtype=torch.float64)
    (values,) = assembly.values(Jacobian(g, z), z)
    rows, columns = assembly.pattern.rows, assembly.pattern.columns
    expected = torch.where(columns == 0, 2.0, 2 * z[0, columns])
    expected = torch.where(rows == 0, torch.where(columns == 0, z[0, 1:].sum(), z[0, 0]), expected)
    torch.testing.assert_close(values, expected)


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
    for name in ("a full row", "a full column"):
        assert Assembly(given(MASKS[name], N)).colours == 2


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
