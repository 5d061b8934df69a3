"""A user's function as a graph of torch calls with all its tensors as inputs, as torch.compile sees it.

What :mod:`torchimplicit.capture` finds out by evaluating a function, torch.compile's front end (Dynamo) finds out by reading its
code, and its guards tell at every further call whether the graph still is that of the function: only the tensors are new. That
makes it cheap to have, and kernels can be made from it.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from torchimplicit.condition import Flat, Kind
from torchimplicit.products import hooked, unhooked
from torchimplicit.recording import version
from torchimplicit.status import users_frame
from torchimplicit.tolerance import Tolerance

Kernel = Callable[..., Any]

KEPT = 64  # kernels of one graph


@dataclass(frozen=True, eq=False)
class Graph:
    """``fn(z, *args)`` as a pure function of explicit tensors.

    module : the torch calls; its inputs are leaves of z and other tensors.
    unknowns : which of the inputs are leaves of z, in their order.
    returned, tree : which of the module's results, and of its inputs after them, fn returns, and in what structure.
    kernels : what has been made of it, by whatever tells one from the other.
    """

    module: GraphModule
    unknowns: tuple[int, ...]
    returned: tuple[int, ...]
    tree: pytree.TreeSpec
    kernels: dict[Any, Kernel | None] = field(default_factory=dict)

    def __call__(self, z: Any, tensors: Sequence[Tensor]) -> Any:
        """fn at z, with these tensors as the module's other inputs, in their order."""
        inputs = list(tensors)
        for place, leaf in sorted(zip(self.unknowns, pytree.tree_leaves(z), strict=True), key=lambda pair: pair[0]):
            inputs.insert(place, leaf)
        results = [*self.module(*inputs), *inputs]
        return pytree.tree_unflatten([results[i] for i in self.returned], self.tree)

    def kernel(self, key: Any, function: Callable[..., Any], example: Sequence[Tensor]) -> Kernel | None:
        """``function`` of tensors, which evaluates this graph, compiled for tensors like the example; made once for each key.

        None where none can be made of it, because it draws random numbers, say; the user is warned once.
        """
        if key not in self.kernels:
            try:
                self.kernels[key] = _compiled(function, example, full=len(self.kernels) >= KEPT)
            except Exception as error:  # of tracing or compiling, which the plain evaluation knows nothing of
                note = f"compile=True has no effect: no kernel can be made of the function ({_first_line(error)})."
                warnings.warn(note, stacklevel=users_frame())
                self.kernels[key] = None
        return self.kernels[key]


@dataclass(frozen=True)
class FlatGraph:
    """A problem whose function is a graph of explicit tensors, from which kernels are made.

    function : (z, *tensors) -> the function's flat value, (B, n) -> (B, m) or (B,).
    key : tells this problem from others with the same graph.
    """

    whole: Graph
    tensors: list[Tensor]
    function: Callable[..., Tensor]
    kind: Kind
    tolerance: Tolerance
    key: Any

    def at(self, tensors: Sequence[Tensor]) -> Flat:
        """The function of z alone."""
        return lambda z: self.function(z, *tensors)

    def kernel(self, key: Any, part: Callable[..., Any], leading: Sequence[Tensor]) -> Kernel | None:
        """``part``, a function of tensors like the leading ones and of those of the graph, compiled; None if that cannot be.
        The key tells it from other parts of the same problem."""
        return self.whole.kernel((key, self.key), part, [*leading, *(tensor.detach() for tensor in self.tensors)])


class NoGraph(Exception):
    """A function is no graph of torch calls; the message says why."""


def graph_of(fn: Callable[..., Any], z: Any, args: Sequence[Any]) -> tuple[Graph, list[Tensor]]:
    """The graph of ``fn`` and the tensors that it uses beside z: those of args, of closures and modules, globals.

    Raises:
        NoGraph: there is none: code that torch.compile cannot read as a whole (or that raises), tensors that fn changes, no room
            for another graph of the same code.
    """
    leaves, tree = pytree.tree_flatten(z)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]  # as where fn is differentiated
    _seen.take()
    try:
        with torch.enable_grad():
            out = _reader(fn)(fn, pytree.tree_unflatten(leaves, tree), args)
    except Exception as error:
        raise NoGraph(_first_line(error)) from error
    seen = _seen.take()
    if seen is None:
        raise NoGraph("nothing is computed by torch, or torch.compile is switched off")
    reading, inputs = seen
    if reading.graph is None:
        reading.arrange(leaves, inputs, out)
        del out
        reading.check_nothing_kept()
    graph = reading.graph
    if reading.refused or graph is None:
        raise NoGraph(reading.refused)
    return graph, [tensor for place, tensor in enumerate(inputs) if place not in graph.unknowns]


class _Reading:
    """What Dynamo calls in place of the torch calls it has read: notes the tensors, and computes nothing once the graph is known.

    What a function does besides, such as storing a tensor in a module, Dynamo does after each call with what is returned here:
    then that has to be the true results, and the function is no graph.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.graph: Graph | None = None
        self.refused = ""
        self._results: tuple[Any, ...] = ()
        self._stand_ins: tuple[Any, ...] = ()
        self._alive: list[weakref.ref[Tensor]] = []

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        _seen.last = self, inputs
        if self.graph is not None and not self.refused:
            return self._stand_ins
        inside = self.module.state_dict(keep_vars=True).values()
        if not all(isinstance(tensor, Tensor) for tensor in inputs) or any(tensor.requires_grad for tensor in inside):
            self.refused = "it uses numbers or tensors that torch.compile does not show"
        versions = [version(tensor) for tensor in inputs if isinstance(tensor, Tensor)]
        # Activation checkpointing counts what is saved, and a second call saves nothing. A transform inside refuses hooks, ours too.
        transforms = any("saved_tensors_hooks" in str(node.target) for node in self.module.graph.nodes)
        with torch.enable_grad() if transforms or not hooked() else unhooked():
            results: tuple[Any, ...] = tuple(self.module(*inputs))
        if versions != [version(tensor) for tensor in inputs if isinstance(tensor, Tensor)]:
            self.refused = "it changes a tensor in place"
        self._results = results
        return results

    def arrange(self, leaves: Sequence[Tensor], inputs: Sequence[Any], out: Any) -> None:
        """Make the graph, if every leaf of z is among the inputs and every leaf of what is returned among results and inputs."""
        returned, tree = pytree.tree_flatten(out)
        results, self._results = self._results, ()
        unknowns = [_place(leaf, inputs) for leaf in leaves]
        found = [_place(leaf, [*results, *inputs]) for leaf in returned]
        if not self.refused and None in unknowns:
            self.refused = "it does not use all of z"
        if not self.refused and not (None not in found and set(range(len(results))) <= set(found)):
            self.refused = "it keeps tensors, or returns some that it has not computed"
        if self.refused:
            return
        self._stand_ins = tuple(torch.empty_like(result, device="meta") for result in results)
        self._alive = [weakref.ref(result) for result in results]
        places, back = ([i for i in these if i is not None] for these in (unknowns, found))
        self.graph = Graph(self.module, tuple(places), tuple(back), tree)

    def check_nothing_kept(self) -> None:
        """Refuse a function some of whose results are still alive when it has returned and nobody here holds them."""
        if any(result() is not None for result in self._alive):
            self.refused = "it keeps a tensor that it returns"


class _Seen(threading.local):
    """What was called last, on this thread, and with which tensors."""

    last: tuple[_Reading, tuple[Tensor, ...]] | None = None

    def take(self) -> tuple[_Reading, tuple[Tensor, ...]] | None:
        last, self.last = self.last, None
        return last


_seen = _Seen()
_readers: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()


def _reader(fn: Any) -> Callable[..., Any]:
    """Calls a function under Dynamo; one for the code of ``fn``: a lambda that is written once and made at every call has one."""
    key = code_of(fn)
    if key not in _readers:
        backend: Any = lambda module, _: _Reading(module)  # noqa: E731
        _readers[key] = torch.compile(own_code(_applied), backend=backend, fullgraph=True, dynamic=False)
    return _readers[key]


def _applied(fn: Callable[..., Any], z: Any, args: Sequence[Any]) -> Any:
    return fn(z, *args)


def code_of(fn: Any) -> Any:
    """What stays the same of a function that is made at every call."""
    while isinstance(fn, partial):
        fn = fn.func
    return getattr(getattr(fn, "__func__", fn), "__code__", fn)


def own_code(function: Any) -> Callable[..., Any]:
    """The function with code of its own: torch.compile gives up on code that it has compiled for too many functions."""
    assert isinstance(function, FunctionType)
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def _place(tensor: Any, among: Sequence[Any]) -> int | None:
    return next((i for i, other in enumerate(among) if other is tensor), None)


def _compiled(function: Callable[..., Any], example: Sequence[Tensor], full: bool) -> Kernel:
    if full:
        raise RuntimeError(f"{KEPT} others were made of it, for other tolerances, solvers or layouts")
    traced = make_fx(function, tracing_mode="fake")(*example)
    if any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in traced.graph.nodes):
        raise RuntimeError("it draws random numbers")
    kernel: Kernel = torch._inductor.compile(traced, list(example))
    return kernel


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
