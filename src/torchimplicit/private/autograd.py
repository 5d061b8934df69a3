"""Autograd's own: its engine, its nodes, forward mode's level, and the batched tensors of ``is_grads_batched``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

_AccumulateGrad: Any = vars(torch._C._functions)["AccumulateGrad"]
_apply = vars(torch.autograd.Function)["apply"]
_PRODUCTS = {"MvBackward0", "MmBackward0", "AddmvBackward0", "AddmmBackward0", "SparseAddmmBackward0"}


def grads(output: Tensor, inputs: Sequence[Tensor], u: Tensor, create_graph: bool) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad`` with ``retain_graph`` and ``allow_unused``, without the checks of what we know: they take as long as
    the arithmetic of a small function."""
    run = torch.autograd.Variable._execution_engine.run_backward
    found: tuple[Tensor | None, ...] = run(
        (output,), (u,), True, create_graph, tuple(inputs), allow_unreachable=True, accumulate_grad=False
    )
    return found


@contextmanager
def without_hooks() -> Iterator[None]:
    """Without the hooks for saved tensors that are around: ``torch.func`` runs under none, not even under those of a checkpoint around
    a compiled function, which the graph that is made of that never sees."""
    of_autograd: Any = torch._C._autograd
    hooks = []
    while (top := of_autograd._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(top)
        of_autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            of_autograd._push_saved_tensors_default_hooks(pack, unpack)


def is_leaf(node: Any) -> bool:
    """Whether a node is where a graph ends: that of a variable, ``node.variable``."""
    return isinstance(node, _AccumulateGrad)


def is_compiled(node: Any) -> bool:
    """Whether a node stands for what torch.compile has made. Its class is made anew for each graph: only its name tells."""
    return type(node).__name__.startswith("CompiledFunction")


def multiplies_by_rows(node: Any) -> bool:
    """Whether a node is a product with a matrix of CSR layout: its pullback multiplies with the transpose."""
    if type(node).__name__ not in _PRODUCTS:
        return False
    saved = (getattr(node, name, None) for name in ("_saved_self", "_saved_mat", "_saved_mat1"))
    return any(isinstance(matrix, Tensor) and matrix.layout == torch.sparse_csr for matrix in saved)


def sequence(node: Any) -> int:
    """When a node was made: a number that grows."""
    return int(node._sequence_nr())


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for those of inference mode, which do not tell."""
    return 0 if tensor.is_inference() else tensor._version


def is_view_of(tensor: Tensor, base: Tensor) -> bool:
    """Whether autograd knows a tensor as a view of another; nothing else tells of a view that was changed in place."""
    return tensor._base is base


def storage(tensor: Tensor) -> int:
    """What a tensor shares with its views and its ``.data``; an address may be that of nothing, or used again."""
    return int(tensor.untyped_storage()._cdata)


def changes_a_leaf(error: RuntimeError) -> bool:
    """Whether an error says that a variable, or a view of one, was changed in place; torch has no class for it."""
    return "view of a leaf Variable that requires grad is being used in an in-place" in str(error)


def changed_in_place(error: RuntimeError) -> bool:
    """Whether an error says that a saved tensor was changed in place since; torch has no class for it."""
    return "has been modified by an inplace operation" in str(error)


def mixes_precisions(error: Exception) -> bool:
    """Whether an error says that an operation was given float32 and float64; torch has no class for it."""
    said = str(error).lower()
    return isinstance(error, RuntimeError) and "double" in said and "float" in said


def forbids_random_numbers(error: RuntimeError) -> bool:
    """Whether an error says that a vmap allows no random numbers; torch has no class for it."""
    return "vmap: " in str(error) and "random operation" in str(error)


def forward_mode() -> bool:
    """Whether a level of forward mode is active."""
    return forward_ad._current_level >= 0


def forward_mode_on() -> AbstractContextManager[None]:
    """Forward mode inside the ``jvp`` of a Function, where torch has switched it off."""
    return forward_ad._set_fwd_grad_enabled(True)


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)`` outside of ``torch.func``, without reading the signature of ``forward`` each time."""
    base: Any = super(torch.autograd.Function, function)
    return base.apply(*args)


def show_custom_functions(shown: Callable[..., Any] | None) -> None:
    """``autograd.Function.apply`` calls ``shown(apply, *args)``, for torch shows it to no mode; None: it is as it was."""

    @classmethod  # type: ignore[misc]
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        assert shown is not None
        return shown(_apply.__get__(None, cls), *args, **kwargs)

    torch.autograd.Function.apply = _apply if shown is None else apply  # type: ignore[method-assign]


def over_batched(run: Callable[..., tuple[Tensor | None, ...]], *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """``run(*tensors)``, also for the cotangents of ``autograd.grad(..., is_grads_batched=True)`` and the tangents of
    ``autograd.functional.jacobian(..., vectorize=True, strategy="forward-mode")``.

    Those are batched tensors of another kind than torch.vmap's, for which a Function has no rule; they are exchanged.
    """
    batched = {i: t for i, t in enumerate(tensors) if t is not None and is_batched_by_autograd(t)}
    if not batched:
        return run(*tensors)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    present: list[int] = []
    count = 0

    def found(*rows: Tensor) -> tuple[Tensor, ...]:
        nonlocal count
        given = list(tensors)
        for i, row in zip(batched, rows, strict=True):
            given[i] = row
        results = run(*given)
        count = len(results)
        present.extend(i for i, result in enumerate(results) if result is not None)
        return tuple(result for result in results if result is not None)

    # The condition is the same for all of them, and so are random numbers that it draws; that other kind forbids any.
    vmap_mode: Any = torch._C._parse_dispatch_key("VmapMode")
    allowed = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(vmap_mode))
    with allowed:
        plain = [torch._remove_batch_dim(t, level, 0, 0) for t in batched.values()]
        batch = torch.vmap(found, randomness="same")(*plain)
    results: list[Tensor | None] = [None] * count
    for i, result in zip(present, batch, strict=True):
        results[i] = torch._add_batch_dim(result, 0, level)
    return tuple(results)


def is_batched_by_autograd(v: Tensor) -> bool:
    """Whether v is one of those."""
    return torch._C._functorch.is_legacy_batchedtensor(v)
