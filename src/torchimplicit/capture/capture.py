"""A user's function as a pure function of explicit tensors.

PyTorch users write closures and modules: ``lambda z: self.cell(z, injected)``. Every tensor that such a function touches
and was not given becomes an explicit tensor here: it is evaluated once under a mode that notes the sequence of torch calls
and where in each an unknown tensor stands; later evaluations put explicit tensors back *by position in that sequence*. By
identity would be wrong: after ``functional_call`` returns, the module holds other parameters.

What cannot be captured raises :class:`CaptureError`; a gradient is never silently dropped. A tensor that is changed in place before
the backward is noticed when the saved ones are read (:func:`torchimplicit.adjoints.function.saved_tensors`), and named here
(:meth:`Captured.changed_since`), in the first backward through ``Implicit``, with ``create_graph=True`` too. Where the operations
that autograd has recorded are the user's own (of a gradient, for its derivative; of ``Phantom``, ``Unrolled``; of a compiled graph),
torch notices it in the midst of them, and names nothing: to look before would refuse changes on which no derivative depends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.graph import hidden, sequence_now
from torchimplicit.autograd.products import Linearisation, hooked
from torchimplicit.autograd.transforms import inside_transform
from torchimplicit.capture.autocast import Autocast
from torchimplicit.capture.calls import Call, CaptureError
from torchimplicit.capture.mode import innermost, paused
from torchimplicit.capture.names import argument_of, name, name_of, scripted_in
from torchimplicit.capture.parametrised import State, buffers_kept, states_of
from torchimplicit.capture.replay import Replay
from torchimplicit.capture.sharding import sharded_modules_refused
from torchimplicit.capture.tape import Tape
from torchimplicit.condition import Flat
from torchimplicit.private import dynamo_is_loaded, functorch, pytree
from torchimplicit.private.autograd import version
from torchimplicit.private.parametrize import cache_as_it_was, cache_now

KEPT = (
    2**15
)  # entries of all that a function computes, up to which the graph of its evaluation is kept for the backward

_PASS_IN_ARGS = "Pass it in args: f(z, w) with args=(w,)."


@dataclass
class Captured:
    """``fn(z, *args)`` as a function of z and of ``tensors``: the tensors of args first, then the captured ones."""

    fn: Callable[..., Any]
    args: Arguments
    tensors: list[Tensor]
    versions: list[int]  # of these, when fn was recorded
    calls: list[Call]
    autocast: Autocast
    states: Sequence[State]  # what its parametrisations change at every evaluation,
    changing: frozenset[int]  # the slots of these, of which every evaluation gets a copy
    cache: dict[Any, Any] | None  # weights that were cached when fn was recorded
    inside: bool  # whether that was inside a transform, where torch does not see that a tensor that it has wrapped was changed
    _searching: bool = False

    def __call__(self, z: Any, tensors: Sequence[Tensor]) -> Any:
        """fn at z with ``tensors`` in the places of the recorded ones."""
        if self.inside and not self._searching and self._changed():
            raise self.changed_since()
        args = self.args.rebuilt(tensors)
        replay = Replay(self.fn, self.calls, tensors, renew=self._searching, changing=self.changing)
        with (
            eager_cells(),
            self.autocast.restored(),
            cache_as_it_was(self.cache),
            buffers_kept(self.states),
            replay,
        ):
            return replay.returned(self.fn(z, *args))

    @contextmanager
    def searching(self) -> Iterator[None]:
        """While z moves from z0 to z*, plain numbers that fn computes from z may change; those at the last z are kept."""
        self._searching = True
        try:
            yield
        finally:
            self._searching = False

    def _changed(self) -> list[int]:
        """The slots of what was changed in place since fn was recorded."""
        pairs = zip(self.tensors, self.versions, strict=True)
        return [i for i, (tensor, before) in enumerate(pairs) if version(tensor) != before]

    def changed_since(self) -> RuntimeError:
        """The error that names what was changed in place since fn was recorded."""
        names = [
            self.args.name(i, self.fn) if i < len(self.args.places) else name_of(self.tensors[i], self.fn)
            for i in self._changed()
        ]
        what = f"{name(self.fn)} uses {', '.join(names)}, which" if names else f"the solution for {name(self.fn)}"
        return RuntimeError(
            f"{what} has been modified by an inplace operation since the solve, so the derivative there cannot be computed any more. "
            "Change a copy (w = w + 1 instead of w += 1), or call backward before the change."
        )

    def check_nothing_hidden(self, g: Callable[..., Tensor], z: Tensor, tensors: Sequence[Tensor]) -> None:
        """Evaluate g, made from this function, at z on fresh copies; raise CaptureError if it depends on any other tensor."""
        fresh = [t.detach().requires_grad_(t.requires_grad) for t in tensors]
        with torch.enable_grad():
            start = sequence_now()
            variable = z.detach().requires_grad_()
            out = g(variable, *fresh)
        if functorch.wrapped(out):
            raise _hides(self.fn, out, out)
        missed = hidden(out, [variable, *fresh], start)
        if missed is not None:
            raise _hides(self.fn, missed, out)


def capture(
    fn: Callable[..., Any],
    z: Tensor,
    argument: Callable[[Tensor], Any],
    args: Sequence[Any],
    output: Callable[[Any], Tensor],
    residual: Callable[[Flat, Tensor], Tensor] | None = None,
) -> tuple[Captured, Any, Linearisation | None]:
    """Record fn at z, of which ``argument`` makes what fn is given, and ``output`` a flat tensor of what it returns.

    Returns the captured function, what fn returned there, and ``residual``, the condition made from fn, linearised in z and in
    every tensor: None inside transforms, and where what this keeps alive is not small.

    In plain code fn is evaluated on fresh copies of every tensor, so that the graph of this evaluation shows any tensor that
    was missed. Inside transforms, where copies cannot be made, it is evaluated twice: what is the same object both times
    came from outside, what is not was made by fn itself; :meth:`Captured.check_nothing_hidden` does the rest at z*.

    Raises CaptureError for a ScriptModule, for a function that modifies a tensor it did not make, and for a tensor hidden
    inside an operation that does not show its tensors.
    """
    scripted = scripted_in(fn)
    if scripted is not None:
        raise CaptureError(
            f"{name(fn)} uses {scripted!r}, which is compiled by TorchScript: its tensors cannot be seen, so their gradients would be "
            f"lost. Use the original module (or torch.compile)."
        )
    arguments = Arguments.of(args)
    given = arguments.tensors(args)
    around = innermost()
    copies_can_be_made = not inside_transform() and around is None
    keeps = residual is not None and copies_can_be_made and not hooked()

    def evaluate(tape: Tape, z: Tensor) -> Any:
        unknown = argument(z)
        tape.give(pytree.tree_leaves(unknown))
        rebuilt = arguments.rebuilt(tape.explicit)
        with sharded_modules_refused(fn), tape:
            return tape.returned(fn(unknown, *rebuilt))

    def recorded(states: Collection[int]) -> tuple[Tape, Any, Linearisation | None]:
        with paused(), eager_cells():
            if not copies_can_be_made:
                first = Tape(given, states=states, around=around)
                evaluate(first, z)
                tape = Tape(given, first=first, states=states, around=around)
                return tape, evaluate(tape, z), None
            tape = Tape(given, copy=True, states=states)
            seen = []

            def f(z: Tensor) -> Tensor:
                out = evaluate(tape, z)
                seen.append((out, output(out)))
                return seen[-1][1]

            with torch.enable_grad():
                unknown = tape.unknown(z)
                whole = residual(f, unknown) if keeps and residual is not None else f(unknown)
            ((out, flat),) = seen
            missed = tape.hidden(flat)
            if missed is not None:
                raise _hides(fn, missed, flat)
            kept = keeps and tape.entries <= KEPT and not tape.foreign
            return tape, out, Linearisation.of_graph(whole, (unknown, *tape.explicit)) if kept else None

    tape, out, linearised = recorded(())
    states: list[State] = []
    modified = tape.modified()
    if modified:
        states = states_of(fn)
        harmless = {state.address for state in states} - {0}
        strangers = [t for t in modified if t.data_ptr() not in harmless]
        if strangers:
            names = ", ".join(name_of(t, fn) for t in strangers)
            raise CaptureError(
                f"{name(fn)} modifies {names} in place at every evaluation, so it is not a function of z. Likely cause: BatchNorm "
                f"in training mode, or another module that keeps running statistics. Call .eval() on it, use a normalisation "
                "without state (GroupNorm, LayerNorm; parametrizations.spectral_norm in place of torch.nn.utils.spectral_norm), or "
                "compute the state outside."
            )
        with buffers_kept(states):
            tape, out, linearised = recorded(harmless)
    autocast = Autocast.now(z.device.type)
    changing = frozenset(tape.changing)
    captured = Captured(
        fn,
        arguments,
        tape.tensors,
        tape.versions,
        tape.calls,
        autocast,
        states,
        changing,
        cache_now(),
        inside_transform(),
    )
    return captured, out, linearised


@dataclass(frozen=True)
class Arguments:
    """A user's args with their tensors taken out.

    tree : their structure; None for a tuple of tensors, which needs no look into.
    """

    leaves: tuple[Any, ...]
    tree: pytree.TreeSpec | None
    places: tuple[int, ...]

    @staticmethod
    def of(args: Sequence[Any]) -> Arguments:
        if all(isinstance(arg, Tensor) for arg in args):
            return Arguments((None,) * len(args), None, tuple(range(len(args))))
        leaves, tree = pytree.tree_flatten(tuple(args))
        places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        return Arguments(tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves), tree, places)

    def tensors(self, args: Sequence[Any]) -> list[Tensor]:
        """The tensors of args, in order."""
        leaves = args if self.tree is None else pytree.tree_leaves(tuple(args))
        return [leaves[i] for i in self.places]

    def name(self, slot: int, fn: Any) -> str:
        """What ``fn`` calls the argument that a tensor is, or is in."""
        places = (
            pytree.tree_unflatten(list(range(len(self.leaves))), self.tree) if self.tree else range(len(self.leaves))
        )
        (i,) = (i for i, part in enumerate(places) if self.places[slot] in pytree.tree_leaves(part))
        return argument_of(fn, i)

    def rebuilt(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """args with the first of ``tensors`` in place of theirs."""
        if self.tree is None:
            return tuple(tensors[: len(self.places)])
        leaves = list(self.leaves)
        for i, tensor in zip(self.places, tensors, strict=False):
            leaves[i] = tensor
        args: tuple[Any, ...] = pytree.tree_unflatten(leaves, self.tree)
        return args


class _EagerCells:
    """The stance is the whole process's: of threads that solve at the same time the first sets it, and the last sets it back."""

    def __init__(self) -> None:
        self.lock, self.inside = Lock(), 0
        self.stance: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        with self.lock:
            if self.stance is None:
                self.stance = torch.compiler.set_stance("force_eager")
            self.inside += 1

    def __exit__(self, *raised: Any) -> None:
        with self.lock:
            self.inside -= 1
            if self.stance is not None and not self.inside:
                self.stance.__exit__(*raised)
                self.stance = None


_EAGER_CELLS = _EagerCells()


def eager_cells() -> AbstractContextManager[Any]:
    """Cells under torch.compile run eagerly here: Dynamo cannot trace under a torch function mode."""
    return _EAGER_CELLS if dynamo_is_loaded() else nullcontext()


def _hides(fn: Any, missed: Tensor, out: Tensor) -> CaptureError:
    what = "a tensor computed outside of it" if missed is out else name_of(missed, fn)
    if type(missed) not in (Tensor, torch.nn.Parameter):
        return CaptureError(
            f"{name(fn)} uses {what}, which is a {type(missed).__name__}: the tensors that a subclass makes are not seen, so their "
            f"gradients would be lost. Convert it with .as_subclass(torch.Tensor)."
        )
    return CaptureError(
        f"{name(fn)} uses {what}, which needs a gradient, inside an operation that does not show its tensors (a "
        f"compiled extension, a torch.func transform): that gradient would be lost. {_PASS_IN_ARGS}"
    )
