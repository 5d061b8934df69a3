"""What the layers of a model say of their last solves, as numbers to log during training."""

from __future__ import annotations

import math

from torch import nn

from torchimplicit.nn import ArgMin, FixedPoint, Root
from torchimplicit.solution import SolveInfo


def facts(model: nn.Module) -> dict[str, float]:
    """The facts of the last solve of every layer of ``ti.nn`` in a model, by names such as ``"encoder.layer/steps"``.

    steps, error : the largest of the batch; the error in z's units, NaN where a method has none.
    failed : how many systems have not converged.
    backward_steps, backward_failed : the same of the latest backward; absent until one has run.

    A layer that was not called yet says nothing. Reading them waits for the device: log every few steps.
    """
    found: dict[str, float] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, (FixedPoint, Root, ArgMin)) and layer.last_info is not None:
            info, place = layer.last_info, name or type(layer).__name__
            known = info.error[~info.error.isnan()]
            found |= {f"{place}/{what}": value for what, value in _ended(info).items()}
            found[f"{place}/error"] = float(known.max()) if known.numel() else math.nan
            if info.adjoint is not None:
                found |= {f"{place}/backward_{what}": value for what, value in _ended(info.adjoint).items()}
    return found


def _ended(info: SolveInfo) -> dict[str, float]:
    if not info.steps.numel():
        return {"steps": 0.0, "failed": 0.0}
    return {"steps": float(info.steps.max()), "failed": float((~info.converged).sum())}
