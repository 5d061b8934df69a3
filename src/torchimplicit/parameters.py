"""Checks of the parameters of methods."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any


def check_count(name: str, count: object) -> None:
    """Raise ValueError unless ``count`` is an integer of at least 1."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} >= 1 is needed, an integer; got {count!r}.")


def check_positive(name: str, number: object) -> None:
    """Raise ValueError unless ``number`` is positive and finite."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < math.inf:
        raise ValueError(f"{name} > 0 is needed, a finite number; got {number!r}.")


def check_steps(max_steps: int | None) -> None:
    """Raise ValueError unless ``max_steps`` is None or a number of steps."""
    if max_steps is not None and (isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 0):
        raise ValueError(f"max_steps must be an integer >= 0 (or None for the solver's default); got {max_steps!r}.")


def name_parameters(package: dict[str, Any]) -> None:
    """Let the dataclasses of a package, given its namespace, say what their parameters are where one is given that they lack."""
    for each in list(package.values()):
        if isinstance(each, type) and is_dataclass(each) and each.__module__.startswith(package["__name__"]):
            _name_parameters_of(each)


def _name_parameters_of(cls: Any) -> None:
    init = cls.__init__
    names = [field.name for field in fields(cls)]

    @wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        for option in options:
            if option not in names:
                raise TypeError(f"{cls.__name__} has no parameter {option!r}; its parameters are {', '.join(names)}.")
        init(self, *args, **options)

    cls.__init__ = checked


def check_args(args: Any) -> None:
    """Raise TypeError unless ``args`` is a tuple: a bare tensor would be taken apart."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple; got {type(args).__name__}. For one argument write args=(x,).")
