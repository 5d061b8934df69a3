"""Pytrees of unknowns seen as one flat ``(B, n)`` tensor: B independent systems of n real unknowns.

Solvers know only that flat tensor. Complex unknowns are seen as pairs of reals, so g need not be holomorphic and the
transposed real Jacobian is exactly PyTorch's vector-Jacobian product (the conjugate transpose of a holomorphic g).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import tracing
from torchimplicit.private import pytree

HALF = (torch.float16, torch.bfloat16)
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}  # torch.compile does not know dtype.to_real
COMPLEX = {real: dtype for dtype, real in REAL.items()}
DTYPES = (torch.float64, torch.float32, *HALF, torch.complex128, torch.complex64)


def describe(value: object) -> str:
    """A short description of anything, for error messages: ``float32 tensor of shape (3, 4) on cpu``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, (bool, int, float, str)) else type(value).__name__


@dataclass(frozen=True)
class Layout:
    """How a pytree of tensors maps to one flat tensor of shape (B, n)."""

    tree: pytree.TreeSpec
    shapes: tuple[torch.Size, ...]
    batch_shape: torch.Size
    dtype: torch.dtype  # of the user's leaves
    evaluate_in: torch.dtype  # of the leaves that the user's function is given (differs for half precision)
    device: torch.device

    @staticmethod
    def of(z0: Any, batch_ndim: int, name: str = "z0") -> Layout:
        """The layout of ``z0``; raises TypeError or ValueError that say what is wrong with it."""
        leaves, tree = pytree.tree_flatten(z0)
        if not leaves:
            raise TypeError(f"{name} must be a tensor or a pytree of tensors; got an empty {type(z0).__name__}.")
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{name} must be a tensor or a pytree of tensors; got a leaf that is {describe(leaf)}. "
                    f"Wrap numbers as torch.tensor(...)."
                )
            if leaf.is_nested:
                raise TypeError(f"{name} must be a dense (strided) tensor; got a nested one. Give its parts as a list.")
            if leaf.dtype not in DTYPES:
                raise TypeError(
                    f"{name} must have a floating or complex dtype (float64, float32, float16, bfloat16, complex128, "
                    f"complex64); got a {describe(leaf)}. Use {name}.to(torch.float64)."
                )
            if leaf.layout != torch.strided:
                raise TypeError(f"{name} must be a dense (strided) tensor; got layout {leaf.layout}. Use .to_dense().")
        first = leaves[0]
        for leaf in leaves[1:]:
            if leaf.dtype != first.dtype or leaf.device != first.device:
                raise TypeError(
                    f"all leaves of {name} must share one dtype and one device; got a {describe(first)} and a "
                    f"{describe(leaf)}. Convert them with .to(dtype=..., device=...)."
                )
        if first.is_meta:
            raise TypeError(
                f"{name} is on the meta device, which has no numbers to solve for. Use .to('cpu') or a GPU."
            )
        if not isinstance(batch_ndim, int) or isinstance(batch_ndim, bool) or batch_ndim < 0:
            raise ValueError(f"batch_ndim must be an integer >= 0; got {batch_ndim!r}.")
        for leaf in leaves:
            if leaf.ndim < batch_ndim:
                raise ValueError(
                    f"batch_ndim={batch_ndim}, but a leaf of {name} has only {leaf.ndim} dimensions ({describe(leaf)}). "
                    f"batch_ndim counts the leading dimensions that index independent systems."
                )
            if leaf.shape[:batch_ndim] != first.shape[:batch_ndim]:
                raise ValueError(
                    f"with batch_ndim={batch_ndim} all leaves of {name} must share their first {batch_ndim} dimensions; "
                    f"got shapes {tuple(first.shape)} and {tuple(leaf.shape)}."
                )
        evaluate_in = torch.float32 if first.dtype in HALF else first.dtype
        shapes = tuple(leaf.shape for leaf in leaves)
        of = first.shape[:batch_ndim], first.dtype, evaluate_in, first.device
        if isinstance(z0, Tensor) and not tracing():
            return _remembered(shapes[0], *of)
        return Layout(tree, shapes, *of)

    def of_rows(self, rows: slice | Tensor) -> Layout:
        """The layout of some systems of a single batch dimension."""
        size = len(rows) if isinstance(rows, Tensor) else len(range(self.batch)[rows])
        return replace(
            self, shapes=tuple(torch.Size((size, *s[1:])) for s in self.shapes), batch_shape=torch.Size((size,))
        )

    @cached_property
    def batch(self) -> int:
        """B: the number of independent systems."""
        return math.prod(self.batch_shape)

    @cached_property
    def size(self) -> int:
        """n: the number of real unknowns of one system."""
        return sum(self.widths)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """How many real unknowns of one system each leaf holds."""
        parts = 2 if self.dtype.is_complex else 1
        return tuple(parts * math.prod(shape[len(self.batch_shape) :]) for shape in self.shapes)

    @cached_property
    def single(self) -> bool:
        """Whether the unknowns are one tensor, and no other pytree."""
        return self.tree.is_leaf()

    @cached_property
    def real_dtype(self) -> torch.dtype:
        """The dtype of the flat tensor."""
        return torch.float32 if self.dtype in HALF else REAL.get(self.dtype, self.dtype)

    @property
    def tolerance_dtype(self) -> torch.dtype:
        """The dtype whose rounding limits the residual, from which default tolerances follow."""
        return self.evaluate_in.to_real()

    def in_own_precision(self) -> Layout:
        """The same layout, but the user's function is given leaves of its own half-precision dtype."""
        return replace(self, evaluate_in=self.dtype)

    def like_z(self, value: Any) -> bool:
        """Whether a value is just like z, where that is one tensor."""
        return (
            isinstance(value, Tensor)
            and value.shape == self.shapes[0]
            and value.dtype == self.dtype
            and value.device == self.device
        )

    def flatten(self, tree: Any) -> Tensor:
        """A pytree of this layout as one (B, n) tensor (differentiable)."""
        return self.join(pytree.tree_leaves(tree))

    def join(self, leaves: list[Tensor]) -> Tensor:
        """Leaves of this layout's shapes as one (B, n) tensor of the real dtype."""
        rows = [self._row(leaf, width) for leaf, width in zip(leaves, self.widths, strict=True)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _row(self, leaf: Tensor, width: int) -> Tensor:
        return _real(_cast(leaf, self._source_dtype)).reshape(self.batch, width)

    @cached_property
    def _source_dtype(self) -> torch.dtype:
        return COMPLEX[self.real_dtype] if self.dtype.is_complex else self.real_dtype

    def split(self, flat: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """The leaves, of the given dtype, of a (B, n) tensor."""
        leaves = []
        start = 0
        for shape, width in zip(self.shapes, self.widths, strict=True):
            leaves.append(self._leaf(flat[:, start : start + width], shape, dtype))
            start += width
        return leaves

    def _leaf(self, part: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if self.dtype.is_complex:
            part = torch.view_as_complex(part.reshape(*shape, 2))
        return _cast(part.reshape(shape), dtype)

    def unflatten(self, flat: Tensor) -> Any:
        """The pytree, in the user's own dtype, of a (B, n) tensor."""
        return self._tree(flat, self.dtype)

    def argument(self, flat: Tensor) -> Any:
        """The pytree that the user's function is given as z."""
        return self._tree(flat, self.evaluate_in)

    def _tree(self, flat: Tensor, dtype: torch.dtype) -> Any:
        if self.single:
            return self._leaf(flat, self.shapes[0], dtype)
        return pytree.tree_unflatten(self.split(flat, dtype), self.tree)


@lru_cache(maxsize=256)
def _remembered(
    shape: torch.Size,
    batch_shape: torch.Size,
    dtype: torch.dtype,
    evaluate_in: torch.dtype,
    device: torch.device,
) -> Layout:
    """The layout of a single tensor, whose sizes need not be found anew at every call."""
    return Layout(pytree.tree_structure(0), (shape,), batch_shape, dtype, evaluate_in, device)


def _cast(leaf: Tensor, dtype: torch.dtype) -> Tensor:
    return leaf if leaf.dtype == dtype else leaf.to(dtype)


def _real(leaf: Tensor) -> Tensor:
    return torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf


def same_as_z(layout: Layout, name: str, hint: str = "") -> Callable[[Any], Tensor]:
    """Flatten the output of a function that must look like z (a root's g, a fixed point's f), checking that it does.

    ``hint`` : what to do where it has another number of entries than z.
    """

    def flatten(out: Any) -> Tensor:
        if layout.single and layout.like_z(out):
            return layout.join([out])
        leaves, tree = pytree.tree_flatten(out)
        if tree != layout.tree or any(not isinstance(leaf, Tensor) for leaf in leaves):
            raise TypeError(
                f"{name} must return what z is: {_structure(layout)}; it returned {_outline(leaves, tree)}."
                + _aux_hint(out)
                + (hint if _entries(leaves) != sum(math.prod(shape) for shape in layout.shapes) else "")
            )
        for leaf, shape in zip(leaves, layout.shapes, strict=True):
            if leaf.shape != shape:
                raise ValueError(
                    f"{name} must return tensors of z's shapes {[tuple(s) for s in layout.shapes]}; it returned "
                    f"{[tuple(leaf.shape) for leaf in leaves]}. z is given whole, with all its batch dimensions."
                    + (hint if _entries(leaves) != sum(math.prod(shape) for shape in layout.shapes) else "")
                )
            if leaf.is_complex() and not layout.dtype.is_complex:
                raise TypeError(f"{name} returned a {describe(leaf)}, but z is real. Make z0 complex, or take .real.")
            _check_differentiable(leaf, name)
            if leaf.device != layout.device:
                raise ValueError(
                    f"{name} returned a {describe(leaf)}, but z is on {layout.device}. Move its inputs there."
                )
        return layout.join(leaves)

    return flatten


def per_system_scalar(layout: Layout, name: str) -> Callable[[Any], Tensor]:
    """Flatten the output of an objective: one real number per system, to shape (B,)."""

    def flatten(out: Any) -> Tensor:
        if not isinstance(out, Tensor):
            raise TypeError(
                f"{name} must return a tensor of shape {tuple(layout.batch_shape)}; it returned {describe(out)}."
            )
        if out.shape != layout.batch_shape and not (layout.batch == 1 and out.numel() == 1):
            raise ValueError(
                f"{name} must return one number per system, shape {tuple(layout.batch_shape)} (the first batch_ndim "
                f"dimensions of z); it returned shape {tuple(out.shape)}. Sum over the other dimensions; where all of z is one "
                f"system, pass batch_ndim=0 (the default of ti.nn is 1)."
            )
        if out.is_complex():
            raise TypeError(f"{name} must return real numbers to be minimised; it returned a {describe(out)}.")
        _check_differentiable(out, name)
        return out.reshape(layout.batch).to(layout.real_dtype)

    return flatten


def per_system_vector(layout: Layout, name: str) -> Callable[[Any], Tensor]:
    """Flatten the output of a residual function: any pytree of tensors with the batch dimensions first, to (B, m)."""

    def flatten(out: Any) -> Tensor:
        leaves, _ = pytree.tree_flatten(out)
        if not leaves or any(not isinstance(leaf, Tensor) for leaf in leaves):
            raise TypeError(f"{name} must return a tensor or a pytree of tensors; it returned {describe(out)}.")
        ndim = len(layout.batch_shape)
        rows = []
        for leaf in leaves:
            if leaf.shape[:ndim] != layout.batch_shape:
                raise ValueError(
                    f"{name} must return residuals whose first dimensions are z's batch dimensions "
                    f"{tuple(layout.batch_shape)}; it returned shape {tuple(leaf.shape)}."
                )
            _check_differentiable(leaf, name)
            real = _real(leaf)
            rows.append(real.reshape(layout.batch, math.prod(real.shape[ndim:])).to(layout.real_dtype))
        return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]

    return flatten


def _check_differentiable(out: Tensor, name: str) -> None:
    if not (out.is_floating_point() or out.is_complex()):
        raise TypeError(
            f"{name} returned a {describe(out)}: integers have no derivative in z. Return floating numbers."
        )


def _structure(layout: Layout) -> str:
    return str(pytree.tree_unflatten([f"tensor of shape {tuple(s)}" for s in layout.shapes], layout.tree))


def _outline(leaves: list[Any], tree: pytree.TreeSpec) -> str:
    return str(pytree.tree_unflatten([describe(leaf) for leaf in leaves], tree))


def _entries(leaves: list[Any]) -> int:
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))


def _aux_hint(out: Any) -> str:
    return " To return auxiliary output as (value, aux), pass has_aux=True." if isinstance(out, tuple) else ""
