"""Products with the transposes of sparse matrices: torch sorts the entries at each of them, here they are kept in order."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.graph import nodes
from torchimplicit.compressed import turned
from torchimplicit.private import TorchDispatchMode
from torchimplicit.private.autograd import multiplies_by_rows, storage, version

LARGE = 1024  # numbers of a value from which the graph behind it is looked through


def multiplies_transposed(graph: Tensor) -> bool:
    """Whether a pullback through the graph multiplies with the transpose of a matrix of CSR layout that is large."""
    return graph.numel() >= LARGE and any(multiplies_by_rows(node) for node in nodes(graph))


class _ByRows(NamedTuple):
    """A matrix that stood by columns, as it was when its entries were put in order: ``values`` are a copy of them."""

    columns: Tensor
    rows: Tensor
    versions: tuple[int, int]
    values: Tensor
    matrix: Tensor

    def has_places_of(self, columns: Tensor, rows: Tensor) -> bool:
        same = storage(columns) == storage(self.columns) and storage(rows) == storage(self.rows)
        return same and self.versions == (version(columns), version(rows)) and rows.shape == self.rows.shape


class Transposes(TorchDispatchMode):
    """While it is entered, a product with a matrix of CSC layout, such as the transpose of one of CSR layout, is one with the same
    matrix by rows, which is kept for the next. The numbers of a matrix are compared with those of the one that is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[_ByRows] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS and args[0].layout == torch.sparse_csc and args[0].ndim == 2:
            args = (self._by_rows(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))

    def _by_rows(self, A: Tensor) -> Tensor:
        columns, rows, values = A.ccol_indices(), A.row_indices(), A.values()
        kept = next((each for each in self._kept if each.has_places_of(columns, rows)), None)
        if kept is not None and torch.equal(kept.values, values):
            return kept.matrix
        if kept is not None:
            self._kept.remove(kept)
        entries, starts, index = turned(values, columns, rows, A.shape[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the layout is new, says torch to whoever makes one
            matrix = torch.sparse_csr_tensor(starts, index, entries, A.shape, check_invariants=False)
        versions = version(columns), version(rows)
        self._kept.append(_ByRows(columns, rows, versions, values.clone(), matrix))
        return matrix


_PRODUCTS = (torch.ops.aten.mv.default, torch.ops.aten.mm.default)
