"""What a solve has found, what it has said of it, and what is a silent wrong answer: none of the two fits, and not a word."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import torchimplicit as ti

D, S = torch.float64, torch.float32

# An estimate of an error is one: a hundred times the tolerance is what no estimate excuses.
FACTOR = 100.0


@dataclass
class Outcome:
    """z and its gradient in x, (like x), both detached; the facts of the solve; and the warnings, forward and backward."""

    z: Any
    info: ti.SolveInfo
    gradient: Tensor | None
    words: list[str]
    forward_words: int = 0  # how many of them came before the backward

    @property
    def found(self) -> Tensor:
        """The systems whose z nothing bad was said of, by their status or a warning, to one who never asks for a gradient."""
        converged = self.info.converged
        return converged & torch.tensor(not (self.forward_words and bool(converged.all())))

    @property
    def silent(self) -> Tensor:
        """The systems of which nothing bad was said, nor of their gradients."""
        silent = self.info.converged.clone()
        if self.gradient is not None and self.info.adjoint is not None:
            silent &= self.info.adjoint.converged
        return silent & torch.tensor(not (self.words and bool(silent.all())))


def outcome(
    solve: Callable[..., ti.Solution],
    f: Callable[..., Any],
    z0: Any,
    x: Tensor | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    **options: Any,
) -> Outcome:
    """Solve, and take the gradient of the loss (None: the sum of z) in x where there is one, all warnings caught."""
    x = None if x is None else x.detach().clone().requires_grad_()
    gradient = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ti.ConvergenceWarning)
        z, info = solve(f, z0, () if x is None else (x,), **options)
        forward_words = len(caught)
        if x is not None:
            total = sum(leaf.sum() for leaf in tree_leaves(z)) if loss is None else loss(z)
            (gradient,) = torch.autograd.grad(total, x)
    words = [str(w.message) for w in caught if issubclass(w.category, ti.ConvergenceWarning)]
    return Outcome(tree_map(lambda leaf: leaf.detach(), z), info, gradient, words, forward_words)


def tolerance(z: Tensor, rows: bool = False) -> Tensor:
    """atol + rtol · rms(z) with the default tolerances of its dtype; of each row (B, ...) with ``rows``."""
    eps = torch.finfo(z.dtype).eps
    z = z.double()
    squares = z.flatten(1).square().mean(-1) if rows and z.ndim > 1 else z.square() if rows else z.square().mean()
    return eps + eps**0.5 * squares.sqrt()


def error(z: Tensor, truth: Tensor, rows: bool = False) -> Tensor:
    """The largest error of its numbers; of each row with ``rows``. NaN is infinitely wrong."""
    difference = (z.double() - truth.double()).abs().nan_to_num(nan=torch.inf)
    return difference.flatten(1).amax(-1) if rows and z.ndim > 1 else difference if rows else difference.max()


def right(z: Tensor, truth: Tensor, rows: bool = False, factor: float = FACTOR) -> Tensor:
    """Whether z is within ``factor`` tolerances of the truth."""
    return error(z, truth, rows) <= factor * tolerance(truth.to(z.dtype), rows)


def silently_wrong(result: Outcome, wrong: Tensor, wrong_gradient: Tensor | bool = False) -> bool:
    """Whether a z that is wrong was found without a word, or a wrong gradient given."""
    return bool((result.found & wrong).any() or (result.silent & wrong_gradient).any())


def polished(g: Callable[[Tensor], Tensor], z: Tensor, steps: int = 60) -> Tensor:
    """The root of g next to z: Newton's method by hand, in float64, until the corrections are rounding."""
    z = z.double().reshape(-1)
    for _ in range(steps):
        correction = torch.linalg.solve(torch.func.jacrev(g)(z), g(z))
        z = z - correction
        if correction.abs().max() <= 4 * torch.finfo(D).eps * z.abs().max():
            break
    return z
