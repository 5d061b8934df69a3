"""Operators of torch as modes see them: what their arguments are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["CDIST_BACKWARD", "LOOK_AT_FACTORS", "DispatchMode", "argument", "name", "parameters", "writes", "written"]

LOOK_AT_FACTORS = torch.ops.aten._linalg_check_errors.default
"""Raises where a factorisation of torch.linalg has failed."""

CDIST_BACKWARD = torch.ops.aten._cdist_backward.default


class DispatchMode(TorchDispatchMode):
    """A mode that sees every operator as it is dispatched. (By default torch would import Dynamo for it, which takes seconds.)"""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def argument(operator: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The argument of that name in a call of an operator, or its default; None if it has no such argument."""
    for place, each in enumerate(operator._schema.arguments):
        if each.name == name:
            return args[place] if place < len(args) else kwargs.get(name, each.default_value)
    return None


def writes(operator: Any) -> bool:
    """Whether an operator changes one of its arguments."""
    schema = getattr(operator, "_schema", None)
    return schema is not None and schema.is_mutable


def written(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a call of an operator changes, its ``out`` too."""
    found: list[Tensor] = []
    for place, each in enumerate(operator._schema.arguments):
        if each.alias_info is not None and each.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(each.name)
            found += [leaf for leaf in (value if isinstance(value, (list, tuple)) else [value]) if leaf is not None]
    return found


def name(operator: Any) -> str:
    """Of an operator, without its namespace and overload."""
    full: str = operator._schema.name
    return full.split("::")[-1]


def parameters(operator: Any) -> list[tuple[str, bool]]:
    """The names of its arguments, and whether each is given by keyword only."""
    return [(each.name, each.kwarg_only) for each in operator._schema.arguments]
