"""``FixedPoint``, ``Root`` and ``ArgMin``: a module inside a layer that solves for its output."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchimplicit.autograd.transforms import inside_transform
from torchimplicit.capture.mode import being_captured
from torchimplicit.capture.names import name
from torchimplicit.capture.parametrised import cache_may_lack_graphs, parametrised
from torchimplicit.capture.sharding import sharded_modules_refused
from torchimplicit.layout import describe
from torchimplicit.nn.coupling import couples_rows
from torchimplicit.private import pytree
from torchimplicit.problems.fixed_point import fixed_point
from torchimplicit.problems.minimize import minimize
from torchimplicit.problems.root import root
from torchimplicit.solution import Solution, SolveInfo


class _Layer(nn.Module):
    """What the layers share: the start, the batch, the call of the module as it is, and the facts of the last solve."""

    solve: ClassVar[Callable[..., Solution]]

    def __init__(self, module: nn.Module, init: Callable[..., Any] | None, options: dict[str, Any]) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{type(self).__name__} takes an nn.Module; got {type(module).__name__}. For a function, use the function."
            )
        if init is not None and not callable(init):
            raise TypeError(f"init must be a function of the layer's arguments that returns z0; got {describe(init)}.")
        known = inspect.signature(type(self).solve).parameters
        names = [option for option, parameter in known.items() if parameter.kind is parameter.KEYWORD_ONLY]
        for option in options:
            if option not in names:
                raise TypeError(f"{type(self).__name__} has no option {option!r}; the options are {', '.join(names)}.")
        self.init = init
        self.assumed = "batch_ndim" not in options  # that the first dimension of z is a batch
        self.seen = False
        self.options = {"batch_ndim": 1, **options}
        self.last_info: SolveInfo | None = None

    def _solve(self, module: nn.Module, args: tuple[Any, ...], z0: Any) -> Any:
        if z0 is None and torch.compiler.is_compiling():  # the graph may break, but not inside of try
            z0 = self._start(args)
        if z0 is None:
            return self._solve_from_its_own_start(module, args)
        if self.assumed and not torch.compiler.is_compiling():
            self._see_that_rows_are_a_batch(module, z0, args)
        made = parametrised(module) if torch.compiler.is_dynamo_compiling() else []
        if not made:
            return self._found(module, args, z0)
        # A power iteration, say, changes its state, which it may not within the function of a solve.
        with parametrize.cached():
            for part, weight in made:
                getattr(part, weight)
            return self._found(module, args, z0)

    def _found(self, module: nn.Module, args: tuple[Any, ...], z0: Any) -> Any:
        z, info = type(self).solve(module, z0, args, **self.options)
        if _attributes_may_change():
            self.last_info = info
        return z

    def _solve_from_its_own_start(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """From what ``init`` gives, or zeros: if the module cannot take these, it is said where they come from."""
        z0 = self._start(args)
        try:
            return self._solve(module, args, z0)
        except (RuntimeError, ValueError) as error:
            if self.init is not None or type(error) not in (RuntimeError, ValueError) or "shape" not in str(error):
                raise
            raise type(error)(
                f"{error} The start, which nobody has given, was zeros like the first tensor argument, {describe(z0)}. If z has "
                f"another shape, such as another width than the input, pass z0=, or init= to the layer, a function of its "
                f"arguments that returns z0."
            ) from error

    def _see_that_rows_are_a_batch(self, module: nn.Module, z0: Any, args: tuple[Any, ...]) -> None:
        """Looked at once, where there are rows whose values can be seen: two or three evaluations of the module."""
        leaves = pytree.tree_leaves(z0)
        what = f"{type(self).__name__} takes the first dimension of z as the batch (batch_ndim=1), as every torch module does"
        if any(isinstance(leaf, Tensor) and leaf.ndim == 0 for leaf in leaves):
            raise ValueError(f"{what}, but a leaf of z0 has no dimension. For one system pass batch_ndim=0.")
        if self.seen or inside_transform() or being_captured() or cache_may_lack_graphs():
            return
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            return  # the solve says what is wrong
        with sharded_modules_refused(module):
            coupled = couples_rows(module, z0, args)
        if coupled:
            raise ValueError(
                f"{what}, but what {name(module)} returns for one row depends on other rows. If they are no batch (the nodes of "
                f"a graph, the entries of one vector), pass batch_ndim=0: z is one system. If they are one, something mixes "
                f"them: BatchNorm in training (call .eval(), or use LayerNorm or GroupNorm), or attention along the wrong "
                f"dimension. batch_ndim=1, given by name, is taken at its word."
            )
        self.seen = len(leaves[0]) > 1

    def _start(self, args: tuple[Any, ...]) -> Any:
        if self.init is not None:
            return self.init(*args)
        for leaf in pytree.tree_leaves(args):
            if isinstance(leaf, Tensor):
                return torch.zeros_like(leaf)
        raise TypeError(
            f"{type(self).__name__} got no tensor argument to make a start from; pass z0=, or init= to the layer."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "last_info": None}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def _attributes_may_change() -> bool:
    """Not where torch.compile reads the layer within a branch or a region that is repeated, say: there it refuses that."""
    if not torch.compiler.is_dynamo_compiling():
        return True
    from torchimplicit.compiling.region import attributes_may_change

    return attributes_may_change()


class FixedPoint(_Layer):
    """z* = cell(z*, *args): a deep equilibrium layer.

    Args:
        cell: a module called as ``cell(z, *args)``; it returns a tensor or pytree like z.
        init: ``init(*args) -> z0``; by default zeros like the first tensor argument.
        options: keywords of :func:`torchimplicit.fixed_point`. ``batch_ndim`` is 1: each row of z is a system with steps, status and
            answer of its own. ``batch_ndim=0``: all of z is one system, such as the nodes of a graph.

    ``forward(*args, z0=None)`` returns z*; ``last_info`` holds the facts of the last solve (it is not pickled).

    Raises:
        ValueError: ``batch_ndim`` was not given, and z has no dimension, or its rows are seen to depend on each other (looked
            for at the first call with two rows or more).
    """

    solve = staticmethod(fixed_point)

    def __init__(self, cell: nn.Module, *, init: Callable[..., Any] | None = None, **options: Any) -> None:
        super().__init__(cell, init, options)
        self.cell = cell

    def forward(self, *args: Any, z0: Any = None) -> Any:
        return self._solve(self.cell, args, z0)


class _OfModule(_Layer):
    """A layer around a module that is no step of its own."""

    def __init__(self, module: nn.Module, *, init: Callable[..., Any] | None = None, **options: Any) -> None:
        super().__init__(module, init, options)
        self.module = module

    def forward(self, *args: Any, z0: Any = None) -> Any:
        return self._solve(self.module, args, z0)


class Root(_OfModule):
    """module(z*, *args) = 0.

    Args:
        module: a module called as ``module(z, *args)``; it returns a tensor or pytree like z.
        init: ``init(*args) -> z0``; by default zeros like the first tensor argument.
        options: keywords of :func:`torchimplicit.root`. ``batch_ndim`` is 1: each row of z is a system with steps, status and
            answer of its own. ``batch_ndim=0``: all of z is one system, such as the nodes of a graph.

    ``forward(*args, z0=None)`` returns z*; ``last_info`` holds the facts of the last solve (it is not pickled).

    Raises:
        ValueError: ``batch_ndim`` was not given, and z has no dimension, or its rows are seen to depend on each other (looked
            for at the first call with two rows or more).
    """

    solve = staticmethod(root)


class ArgMin(_OfModule):
    """z* = argmin over z of module(z, *args).

    Args:
        module: a module called as ``module(z, *args)``; it returns one real number per row of z, or with ``batch_ndim=0`` a single one.
        init: ``init(*args) -> z0``; by default zeros like the first tensor argument.
        options: keywords of :func:`torchimplicit.minimize`. ``batch_ndim`` is 1: each row of z is a system with steps, status and
            answer of its own. ``batch_ndim=0``: all of z is one system, such as the nodes of a graph.

    ``forward(*args, z0=None)`` returns z*; ``last_info`` holds the facts of the last solve (it is not pickled).

    Raises:
        ValueError: ``batch_ndim`` was not given, and z has no dimension, or its rows are seen to depend on each other (looked
            for at the first call with two rows or more).
    """

    solve = staticmethod(minimize)
