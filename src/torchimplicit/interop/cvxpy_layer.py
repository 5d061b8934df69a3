"""A problem of cvxpy as a layer: cvxpy writes it as a cone program, whose data are affine in the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.compiling.entry import entry_point
from torchimplicit.layout import describe
from torchimplicit.linear.pattern import Pattern
from torchimplicit.problems.cone_family import Family, pose_and_solve
from torchimplicit.programs.cones import Cones
from torchimplicit.programs.conic import ConePrograms
from torchimplicit.programs.matrix import Matrix
from torchimplicit.solution import Solution, SolveInfo

DENSE = 256  # numbers of unknowns and rows together, up to which the matrices are dense
OPTIONS = ("solver", "adjoint", "rtol", "atol", "max_steps", "on_failure")
SYMMETRIC = ("symmetric", "PSD", "NSD")


def cvxpy(problem: Any, parameters: Sequence[Any], variables: Sequence[Any], **options: Any) -> CvxpyLayer:
    """A ``cvxpy.Problem`` as a module that gives the solution for the values of its parameters.

    cvxpy writes the problem, which has to be disciplined in its parameters (DPP), as a :func:`torchimplicit.cone_program` once; the
    data of this are affine in the parameters, and derivatives of every order go through both.

    Args:
        problem: a ``cvxpy.Problem``, convex and without integers.
        parameters: all of its ``cvxpy.Parameter``, in the order in which the layer takes their values. Of a symmetric one the symmetric
            part counts, of a diagonal one the diagonal.
        variables: those ``cvxpy.Variable`` whose values the layer gives.
        options: of :func:`torchimplicit.cone_program`: solver, adjoint, rtol, atol, max_steps, on_failure.

    Returns:
        an ``nn.Module``: ``layer(*values)`` gives a tuple of tensors, one for each variable. All values may have batch dimensions in
        front, which broadcast. ``layer.last_info`` holds the facts of the last solve (it is not pickled), with the multipliers of the
        cone program.

    Raises:
        ImportError: cvxpy is not installed: ``pip install 'torchimplicit[cvxpy]'``.
        TypeError, ValueError: the problem is none that can be a layer; the message says why.

    Example::

        x, a = cp.Variable(3), cp.Parameter(3)
        layer = ti.interop.cvxpy(cp.Problem(cp.Minimize(cp.sum_squares(x - a)), [x >= 0]), [a], [x])
        (z,) = layer(torch.randn(8, 3, dtype=torch.float64))

    Source: Agrawal, Amos, Barratt, Boyd, Diamond and Kolter, Differentiable convex optimization layers, NeurIPS 2019.
    """
    return CvxpyLayer(problem, parameters, variables, options)


class CvxpyLayer(nn.Module):
    """See :func:`cvxpy`."""

    def __init__(
        self, problem: Any, parameters: Sequence[Any], variables: Sequence[Any], options: dict[str, Any]
    ) -> None:
        super().__init__()
        package = _package()
        _check(package, problem, parameters, variables)
        for name in options:
            if name not in OPTIONS:
                raise TypeError(f"interop.cvxpy has no option {name!r}; the options are {', '.join(OPTIONS)}.")
        data, chain, _ = problem.get_problem_data(package.CLARABEL)
        program = data["param_prob"]
        dims = program.cone_dims
        if dims.p3d or dims.pnd:
            raise ValueError("interop.cvxpy: the problem has power cones, which cone_program does not know.")
        self.options = {**dict.fromkeys(OPTIONS), "on_failure": "warn", **options}
        self.last_info: SolveInfo | None = None
        self.cones = Cones(dims.zero, dims.nonneg, tuple(dims.soc), tuple(dims.psd), dims.exp)
        self.leaves = [_Leaf(p) for p in parameters]
        names = [_renamed(chain, "param_id_map", p.id) for p in parameters]
        self.order = sorted(range(len(names)), key=lambda i: program.param_id_to_col[names[i]])
        n, m = program.x.size, self.cones.rows
        self.n, self.m, self.dense = n, m, n + m <= DENSE
        q = program.q.tocoo()
        self.q = _Affine(*_entries(q.row, q.col, q.data, q.row < n), n, q.shape[1])
        A, column, row = _tensor(program.A, m)
        self.b = _Affine(*_entries(row, A.col, A.data, column == n), m, A.shape[1])
        self.A = _AffineMatrix(row, column, A.col, -A.data, column < n, (m, n), A.shape[1], self.dense)
        self.P: _AffineMatrix | None = None
        if program.P is not None and program.P.nnz:
            P, column, row = _tensor(program.P, n)
            self.P = _AffineMatrix(row, column, P.col, P.data, column < n, (n, n), P.shape[1], self.dense)
        self.variables = [_Leaf(v) for v in variables]
        ids = [_renamed(chain, "var_id_map", v.id) for v in variables]
        self.starts = [program.var_id_to_col[name] for name in ids]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The values of the variables for those of the parameters."""
        if len(values) != len(self.leaves):
            raise ValueError(f"the layer has {len(self.leaves)} parameters; got {len(values)} values.")
        parts = [leaf.packed(value) for leaf, value in zip(self.leaves, values, strict=True)]
        try:
            front = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        except RuntimeError:
            shapes = ", ".join(str(tuple(part.shape[:-1])) for part in parts)
            raise ValueError(f"the batch dimensions of the parameters do not broadcast: {shapes}.") from None
        like = parts[0] if parts else torch.zeros((), dtype=torch.float64)
        one = torch.ones(1, dtype=like.dtype, device=like.device)
        v = torch.cat([*(parts[i].expand(*front, -1) for i in self.order), one.expand(*front, 1)], -1)
        z, self.last_info = _solved(self.programs, v, front, **self.options)
        pairs = zip(self.variables, self.starts, strict=True)
        return tuple(leaf.unpacked(z[..., start : start + leaf.size]) for leaf, start in pairs)

    def programs(self, tensors: tuple[Tensor, ...]) -> ConePrograms:
        """The cone programs for numbers v (..., k) of the parameters, and 1."""
        (v,) = tensors
        return ConePrograms(None if self.P is None else self.P(v), self.q(v), self.A(v), self.b(v), self.cones)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "last_info": None}


@entry_point
def _solved(programs: Any, v: Tensor, batch_shape: torch.Size, **options: Any) -> Solution:
    """With the numbers of the parameters as what is differentiated: not all data move with them."""
    return pose_and_solve(Family(programs, (v,), (1,)), batch_shape, **options)


class _Leaf:
    """How the value of a parameter or a variable is a vector of its own numbers, column by column; of symmetric ones the upper triangle
    row by row, of diagonal ones the diagonal."""

    def __init__(self, leaf: Any) -> None:
        self.name, self.shape = leaf.name(), tuple(leaf.shape)
        self.symmetric = len(self.shape) == 2 and any(leaf.attributes[name] for name in SYMMETRIC)
        self.diagonal = bool(leaf.attributes["diag"])
        rows = self.shape[0] if self.shape else 1
        self.size = rows * (rows + 1) // 2 if self.symmetric else rows if self.diagonal else leaf.size

    def packed(self, value: Any) -> Tensor:
        """(*batch, *shape) -> (*batch, size)."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"the value of {self.name} must be a floating tensor; got {describe(value)}.")
        ndim = len(self.shape)
        front = value.shape[: value.ndim - ndim]
        if value.ndim < ndim or tuple(value.shape[value.ndim - ndim :]) != self.shape:
            raise ValueError(
                f"the value of {self.name} must have shape (..., {str(self.shape)[1:-1]}); got {describe(value)}."
            )
        if self.diagonal:
            return value.diagonal(dim1=-2, dim2=-1)
        if self.symmetric:
            row, column = torch.triu_indices(*self.shape, device=value.device)
            return ((value + value.mT) / 2)[..., row, column]
        k = len(front)
        return value.permute((*range(k), *reversed(range(k, k + ndim)))).reshape(*front, self.size)

    def unpacked(self, v: Tensor) -> Tensor:
        """The value again."""
        front, k, ndim = v.shape[:-1], v.ndim - 1, len(self.shape)
        if self.diagonal:
            return torch.diag_embed(v)
        if self.symmetric:
            row, column = torch.triu_indices(*self.shape, device=v.device)
            place = torch.empty(self.shape, dtype=torch.int64, device=v.device)
            numbers = torch.arange(self.size, device=v.device)
            place[row, column] = numbers
            place[column, row] = numbers
            return v[..., place]
        return v.reshape(*front, *reversed(self.shape)).permute((*range(k), *reversed(range(k, k + ndim))))


class _Affine(nn.Module):
    """M v for a constant sparse M (m, k), given by its entries, ordered by rows, and v (..., k), whose last number is 1."""

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, m: int, k: int) -> None:
        super().__init__()
        for name, t in (("rows", rows), ("columns", columns), ("entries", values)):
            self.register_buffer(name, t, persistent=False)
        self.shape = m, k
        self.constant = bool((columns == k - 1).all())

    rows: Tensor
    columns: Tensor
    entries: Tensor

    def forward(self, v: Tensor) -> Tensor:
        if self.constant:  # then it is the same for all systems
            v = v.new_zeros(self.shape[1]).index_fill(0, torch.tensor(self.shape[1] - 1, device=v.device), 1)
        pattern = Pattern(self.rows, self.columns, *self.shape)
        return Matrix(self.entries.to(v.dtype), pattern).times(v)


class _AffineMatrix(nn.Module):
    """A matrix whose entries are affine in v: entries of the map in rows (``row``, ``column``) of the matrix and ``of`` v."""

    def __init__(
        self, row: Any, column: Any, of: Any, values: Any, which: Any, shape: tuple[int, int], k: int, dense: bool
    ) -> None:
        super().__init__()
        self.shape, self.dense = shape, dense
        place = row * shape[1] + column  # row by row
        rows, columns, entries = _entries(place, of, values, which)
        if dense:
            self.map = _Affine(rows, columns, entries, shape[0] * shape[1], k)
        else:
            places, rows = torch.unique(rows, return_inverse=True)
            self.map = _Affine(rows, columns, entries, len(places), k)
            self.register_buffer("places", places, persistent=False)

    places: Tensor

    def forward(self, v: Tensor) -> Matrix:
        values = self.map(v)
        if self.dense:
            return Matrix(values.unflatten(-1, self.shape))
        rows, columns = self.places // self.shape[1], self.places % self.shape[1]
        return Matrix(values, Pattern(rows, columns, *self.shape))


def _tensor(tensor: Any, rows: int) -> tuple[Any, Any, Any]:
    """One of cvxpy's as COO, and of each of its rows the column and the row of the matrix, which is stacked column by column."""
    tensor = tensor.tocoo()
    return tensor, tensor.row // rows, tensor.row % rows


def _entries(row: Any, column: Any, data: Any, which: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Those entries, ordered by rows."""
    rows, columns, values = (torch.as_tensor(part[which].copy()) for part in (row, column, data))
    order = torch.argsort(rows.long() * (int(columns.max()) + 1 if len(columns) else 1) + columns.long())
    return rows.long()[order], columns.long()[order], values.double()[order]


def _renamed(chain: Any, kind: str, name: int) -> int:
    """The number that what had this number has after all reductions."""
    for reduction in chain.reductions:
        name = (getattr(reduction, kind, None) or {}).get(name, [name])[0]
    return name


def _check(package: Any, problem: Any, parameters: Sequence[Any], variables: Sequence[Any]) -> None:
    """Raise TypeError or ValueError unless the problem can be a layer."""
    if not isinstance(problem, package.Problem):
        raise TypeError(f"interop.cvxpy takes a cvxpy.Problem; got {describe(problem)}.")
    for leaves, kind, own in (
        (parameters, package.Parameter, problem.parameters()),
        (variables, package.Variable, problem.variables()),
    ):
        for leaf in leaves:
            if not isinstance(leaf, kind):
                raise TypeError(f"interop.cvxpy: expected a cvxpy.{kind.__name__}; got {describe(leaf)}.")
            if leaf.id not in {other.id for other in own}:
                raise ValueError(f"interop.cvxpy: {leaf.name()} does not occur in the problem.")
            if leaf.is_complex() or leaf.attributes.get("sparsity"):
                raise ValueError(
                    f"interop.cvxpy: {leaf.name()} is complex, or has a sparsity; write it in real, dense ones."
                )
    given = {p.id for p in parameters}
    missing = [p.name() for p in problem.parameters() if p.id not in given]
    if missing:
        raise ValueError(
            f"interop.cvxpy: the layer must be given all parameters of the problem; {', '.join(missing)} are missing."
        )
    if problem.is_mixed_integer():
        raise ValueError("interop.cvxpy: a problem with integers has no derivative.")
    if not problem.is_dcp():
        raise ValueError("interop.cvxpy: the problem is not convex by the rules of cvxpy (problem.is_dcp()).")
    if not problem.is_dcp(dpp=True):
        raise ValueError(
            "interop.cvxpy: the problem is not disciplined in its parameters (problem.is_dcp(dpp=True)): parameters may only enter "
            "affinely, and be multiplied with no others. Make a product of parameters a parameter of its own."
        )


def _package() -> Any:
    try:
        return import_module("cvxpy")
    except ImportError as error:
        raise ImportError("interop.cvxpy needs cvxpy: pip install 'torchimplicit[cvxpy]'.") from error
