"""The derivative of a solve whose function is a graph, as one kernel: linear solve, check of its residual, last product.

For ``compile=True``, where the steps were kernels too and have left the factors of ∂g/∂z at z* itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoints.solving import LinearSettings
from torchimplicit.adjoints.well_posed import CHANGE, FAR, doubt, largest
from torchimplicit.graphs import FlatGraph
from torchimplicit.linear.auto import Division
from torchimplicit.linear.iteration import error_of
from torchimplicit.linear.lu import LUFactors
from torchimplicit.linear.small_lu import solve_transposed, worthwhile
from torchimplicit.products import Linearisation
from torchimplicit.solution import Facts
from torchimplicit.stopping import rms


@dataclass(frozen=True)
class FusedPullback:
    """−uᵀ ∂g/∂x with (∂g/∂z)ᵀ u = v, for the tensors x of a graph.

    settings : of the linear solve.
    """

    graph: FlatGraph
    settings: LinearSettings

    def __call__(
        self, v: Tensor, z: Tensor, inverse: Sequence[Tensor], tensors: Sequence[Tensor], which: Sequence[int]
    ) -> tuple[list[Tensor | None], Facts] | None:
        """The products with ``which`` of the tensors, and the facts of the linear solve; None where its residual is too large, or
        z may be a root without a derivative. Nothing is recorded."""
        leading = [tensor.detach() for tensor in (v.contiguous(), z, *inverse)]

        def pulled(*all: Tensor) -> tuple[Tensor | None, ...]:
            return self._pulled(all[: len(leading)], all[len(leading) :], which)

        kernel = self.graph.kernel(("pullback", tuple(which), self.settings.rtol, self.settings.atol), pulled, leading)
        if kernel is None:
            return None
        residual, error, failed, *grads = kernel(*leading, *(tensor.detach() for tensor in tensors))
        if failed:
            return None
        status = torch.zeros_like(residual, dtype=torch.int64)
        one = torch.ones((), dtype=torch.int64, device=z.device)
        return grads, Facts(status, torch.ones_like(status), residual, error, one + 1, one + 1)

    def _pulled(
        self, leading: Sequence[Tensor], tensors: Sequence[Tensor], which: Sequence[int]
    ) -> tuple[Tensor | None, ...]:
        v, z, *inverse = leading

        def condition(z: Tensor, *some: Tensor) -> Tensor:
            full = list(tensors)
            for i, t in zip(which, some, strict=True):
                full[i] = t
            return self.graph.kind.residual(self.graph.at(full), z)

        some = [tensors[i] for i in which]
        g = Linearisation(condition, (z, *some))
        factors: Any
        if z.shape[-1] == 1:
            (slope,) = g.restricted([0]).pull(torch.ones_like(v))
            factors = Division(torch.zeros_like(v) if slope is None else slope)
            u, doubtful = factors.solve(v), False
        else:
            factors = self.settings.inverse(inverse)
            small = isinstance(factors, LUFactors) and len(inverse) == LUFactors.own and worthwhile(v)
            u = solve_transposed(*inverse, v) if small else factors.solve(v, adjoint=True)
            doubtful = factors.suspicious
        ours, *grads = g.pull(-u)
        residual = torch.linalg.vector_norm(v if ours is None else v + ours, dim=-1)
        bound = self.settings.atol + self.settings.rtol * torch.linalg.vector_norm(v, dim=-1)
        failed = doubtful | ~(residual <= bound)
        # A kernel takes its look always: without a decision it is one.
        tolerance = self.settings.tolerance
        w = factors.solve(g.value)
        size, allowed = tolerance.largest(w, z, rms)
        beside = Linearisation(condition, (z - w, *some)).restricted([0]).pull(u)[0]
        change = largest(factors.solve(-v if beside is None else beside - v, adjoint=True))
        regular = (size <= FAR * allowed) & (change <= CHANGE * largest(u))
        failed = (failed | ~((size <= doubt(tolerance, allowed)) | regular)).any()
        return residual, error_of(u, v, residual), failed, *grads
