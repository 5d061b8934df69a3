"""Patterns, the places where a Jacobian may have entries, from whatever describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.pattern import NARROW, FullBand, Pattern, places


def of_places(rows: Tensor, columns: Tensor, m: int, n: int) -> Pattern:
    """From places in any order, perhaps several times."""
    key = (rows.long() * n + columns.long()).unique()
    pattern = Pattern(key // max(1, n), key % max(1, n), m, n)
    if m != n or not n or sum(pattern.bandwidths) >= NARROW:
        return pattern
    band = FullBand(*pattern.bandwidths, n)
    return band if band.entries == pattern.entries else pattern


def of_rows(columns: Tensor, n: int) -> Pattern:
    """From the columns of each row's entries, counted from 1 and perhaps repeated; 0 for none: (m, k)."""
    band = _full_band(columns, n) if len(columns) == n and 0 < columns.shape[1] <= NARROW else None
    if band is not None:
        return band
    columns = columns.sort(1).values if columns.device.type != "cpu" else _sorted(columns)
    entries = columns > 0
    entries[:, 1:] &= columns[:, 1:] != columns[:, :-1]
    found = places(entries.flatten())
    rows = found // max(1, entries.shape[1])
    return Pattern(rows, columns.flatten()[found].long() - 1, len(columns), n)


def _full_band(columns: Tensor, n: int) -> FullBand | None:
    """The same, if these are all places of a narrow band: seen without a sort, by a bit for each place of a row."""
    row = torch.arange(n, dtype=columns.dtype, device=columns.device)
    columns = columns.mT.contiguous()
    entries = (columns > 0).to(columns.dtype)
    offsets = (columns - (row + 1)).mul_(entries)
    least, most = (int(end) for end in offsets.aminmax())
    lower, upper = -least, most
    if min(lower, upper) < 0 or lower + upper >= NARROW:
        return None
    bits = entries.bitwise_left_shift_(offsets.add_(lower))
    seen = bits[0]
    for more in bits[1:]:
        seen = seen | more
    first, end = (lower - row).clamp(min=0), (n + lower - row).clamp(max=lower + upper + 1)
    return FullBand(lower, upper, n) if torch.equal(seen, (1 << end) - (1 << first)) else None


def _sorted(columns: Tensor) -> Tensor:
    """NumPy sorts short rows many times as fast as torch."""
    import numpy as np

    return torch.from_numpy(np.sort(columns.contiguous().numpy(), axis=1))


def given(pattern: Any, n: int) -> Pattern:
    """From what a user gives: a torch tensor (sparse, or dense with zeros), a SciPy sparse array or matrix, or a list of the lengths
    of the square blocks on the diagonal.

    Raises:
        TypeError: it is none of these.
        ValueError: it is not (n, n), or the blocks do not add up to n.
    """
    if isinstance(pattern, Tensor):
        if pattern.ndim != 2:
            raise ValueError(f"sparsity is a {pattern.ndim}-D tensor; expected a pattern of shape ({n}, {n}).")
        pattern = pattern.detach().cpu()  # where it is coloured
        dense = pattern.layout == torch.strided
        rows, columns = pattern.nonzero().mT if dense else pattern.to_sparse_coo().coalesce().indices()
        shape = tuple(pattern.shape)
    elif hasattr(pattern, "tocoo"):  # SciPy's
        coo = pattern.tocoo()
        rows, columns = (torch.as_tensor(index, dtype=torch.int64) for index in (coo.row, coo.col))
        shape = tuple(coo.shape)
    elif isinstance(pattern, Sequence) and not isinstance(pattern, str) and all(isinstance(k, int) for k in pattern):
        if any(k < 1 for k in pattern) or sum(pattern) != n:
            raise ValueError(f"sparsity: the blocks {list(pattern)} add up to {sum(pattern)}; expected {n} unknowns.")
        blocks = [torch.ones(k, k).nonzero() + sum(pattern[:i]) for i, k in enumerate(pattern)]
        rows, columns = torch.cat(blocks).mT
        shape = (n, n)
    else:
        raise TypeError(
            f"sparsity is a {type(pattern).__name__}; expected 'detect', 'off', a sparse tensor of torch, a sparse array of "
            "SciPy, a list of the lengths of diagonal blocks, or a torchimplicit.linear.Memory."
        )
    if shape != (n, n):
        raise ValueError(f"sparsity has shape {shape}; expected ({n}, {n}), the unknowns of one system.")
    return of_places(rows, columns, n, n)


def mirrored(pattern: Pattern, n: int) -> Pattern:
    """The symmetric (n, n) pattern whose first rows are those of ``pattern``, and whose others have entries in their columns alone, and
    on the diagonal."""
    above = pattern.columns >= pattern.m
    rows, columns = pattern.rows, pattern.columns
    return with_diagonal(of_places(torch.cat([rows, columns[above]]), torch.cat([columns, rows[above]]), n, n))


def with_diagonal(pattern: Pattern) -> Pattern:
    """The same with all places of the diagonal, where unknowns that are held have their entry."""
    if isinstance(pattern, FullBand) or int((pattern.rows == pattern.columns).sum()) == pattern.n:
        return pattern
    each = torch.arange(pattern.n, device=pattern.rows.device)
    rows, columns = torch.cat([pattern.rows, each]), torch.cat([pattern.columns, each])
    return of_places(rows, columns, pattern.m, pattern.n)
