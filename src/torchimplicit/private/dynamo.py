"""What of PyTorch's own inside a solve in a graph needs: an operator around the user's function, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, traceback

from torchimplicit.private import pytree

try:
    from torch._dynamo.exc import TorchDynamoException as TorchDynamoException
    from torch._dynamo.exc import TorchRuntimeError, Unsupported
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.variables import higher_order_ops
    from torch._higher_order_ops.base_hop import BaseHOP as BaseHOP
    from torch._higher_order_ops.utils import _hop_compile_and_call, materialize_as_graph
    from torch._higher_order_ops.while_loop import while_loop_op
    from torch.compiler import _compile_session_context  # noqa: F401  with it is_compiling() holds while a graph is lowered too
    from torch.fx.experimental import proxy_tensor
    from torch.fx.experimental.proxy_tensor import get_proxy_mode
    from torch.fx.experimental.sym_node import SymNode

    AVAILABLE = True
except ImportError:  # an older torch: solves break the graph, and compile=True has no effect
    AVAILABLE = False

LACKING = f"PyTorch {torch.__version__} cannot have a loop around a function in a graph"
"""Why a solve is in no graph where not AVAILABLE."""


def given_views(operator: Any) -> Any:
    """The operator, in whose calls Dynamo takes operands that are views of one tensor too, which otherwise it refuses: the parts of a
    user's tensor of parameters, say."""

    class OfViews(higher_order_ops.BaseHOPVariable):
        supports_aliasing = True

    higher_order_ops._hop_name_to_variable_class[operator.__name__] = OfViews
    return operator


_NOT_WITHIN = "within the function of a solve cannot be in a graph. Write it out, or do without fullgraph=True"
_CHANGES = (
    "the function of a solve changes something outside of it: it sets an attribute, appends to a list or counts. In a graph it is read "
    "once, however often it is evaluated. Return what is to be kept, with has_aux=True, or do without fullgraph=True"
)
_IN_OUR_WORDS = {
    "Encountered input mutation during higher order op tracing": (
        "the function of a solve changes a tensor from outside of it in place, so it is not a function of z. Likely cause: BatchNorm "
        "in training mode, or another module that keeps running statistics. Call .eval() on it, use a normalisation without state "
        "(GroupNorm, LayerNorm), or compute the state outside"
    ),
    "HOP: Unsafe side effect": _CHANGES,
    "HOP: Non-nullified side effect": _CHANGES,
    "using `torch.autograd.grad` with": f"torch.autograd.grad {_NOT_WITHIN}",
    "torch/_functorch/": f"torch.func's transforms {_NOT_WITHIN}",
}


def solving(operator: Any, refused: Callable[[GraphModule], str | None]) -> Any:
    """The operator of a solve, given views. The graph breaks where something in the one that Dynamo has made of its function is
    ``refused``, and where Dynamo cannot read that, as everywhere; some of its reasons are told in our words.
    """
    given_views(operator)
    base: Any = higher_order_ops._hop_name_to_variable_class[operator.__name__]

    class OfSolve(base):
        def install_subgraph_in_output_graph(
            self, tx: Any, fn_vt: Any, fn_args_vt: Any, kwargs: Any, body_gmod: Any, attr_name: str = "subgraph"
        ) -> str:
            if (what := refused(body_gmod)) is not None:
                raise Unsupported(f"{what} {_NOT_WITHIN}.")
            name: str = super().install_subgraph_in_output_graph(tx, fn_vt, fn_args_vt, kwargs, body_gmod, attr_name)
            return name

        def _call_function(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super()._call_function(*args, **kwargs)
            except (Unsupported, TorchRuntimeError) as error:
                told = f"{error} {[frame.filename for frame in error.real_stack]}"
                ours = next((ours for theirs, ours in _IN_OUR_WORDS.items() if theirs in told), None)
                if ours is None:
                    raise
                # What is named there ends in "in" where Dynamo goes on with the code on the next line.
                context = (
                    str(error).rpartition("Developer debug context: ")[2].partition("\n")[0].removesuffix(" in").strip()
                )
                raise Unsupported(
                    f"{ours}{f' ({context})' if context else ''}.", real_stack=error.real_stack
                ) from error

    variables: Any = higher_order_ops._hop_name_to_variable_class
    variables[operator.__name__] = OfSolve
    return operator


def operator_around(names: tuple[str, ...]) -> str | None:
    """The innermost of these operators whose function Dynamo reads now; None where it reads none of them."""
    tracer: Any = InstructionTranslator.current_tx().output.current_tracer
    while tracer is not None:
        if (name := getattr(tracer.source_target, "__name__", None)) in names:
            return name
        tracer = tracer.parent
    return None


def attributes_may_change() -> bool:
    """Whether what Dynamo reads now may set an attribute: not the function of an operator, whose results alone leave it."""
    return not AVAILABLE or InstructionTranslator.current_tx().output.current_tracer.parent is None


def while_loop(
    condition: Callable[..., Tensor], body: Callable[..., Any], carried: Sequence[Tensor], others: Sequence[Any]
) -> Sequence[Tensor]:
    """``torch.while_loop`` in a graph that is being made, with what it uses beside the tensors that it carries.

    Where nothing but the shapes of the results is asked for, these are known. Otherwise torch would run both functions half a dozen
    times, each time operation by operation: they are made graphs of first.
    """
    parts = [graph_of(part, (*carried, *others)) for part in (condition, body)]
    if None in parts:
        return carried
    loop: Any = while_loop_op
    with _modules_by_name():
        results: Sequence[Tensor] = loop(*parts, tuple(carried), tuple(others))
    return results


def graph_of(fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The graph of a function, without what nothing needs, and what is computed twice computed once, which torch.compile does not do
    inside a loop; None where only the shapes of results are asked for."""
    if get_proxy_mode() is None:
        return None
    graph = materialize_as_graph(fn, args)
    cheap_masks(graph)
    merge_equal(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def merge_equal(graph: Any) -> None:
    """Operations that are the same become one, but for copies, which are there so that two tensors are not the same memory; nor are
    those that a loop in the graph is given, and nothing is done where there is one, or where a tensor is written to."""
    operations = [node for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    loops = [node for node in graph.graph.nodes if isinstance(node.target, torch._ops.HigherOrderOperator)]
    if loops or any(node.target._schema.is_mutable for node in operations):
        return
    seen: dict[Any, Any] = {}
    for node in operations:
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
        elif node.target.namespace == "aten" and node.target is not torch.ops.aten.clone.default:
            first = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
            if first is not node:
                node.replace_all_uses_with(first)


# Inductor's kernels for processors hold a mask as wide as the numbers it came from. For "and" and "or" they make 32-bit integers of
# both, which for masks of 64-bit numbers is a loop over the lanes in memory, for torch's headers have no instructions for that; a step
# of Newton's method for a million numbers then takes twice as long. For a minimum and a maximum they make 32-bit floats: those have.
_OF_MASKS = {"and": torch.ops.aten.minimum.default, "or": torch.ops.aten.maximum.default}


def cheap_masks(graph: Any) -> None:
    """Masks on a processor are joined by their minimum and maximum, which are the same as "and" and "or"."""
    for node in graph.graph.nodes:
        kind, _, name = str(getattr(node.target, "__name__", "")).split(".")[0].partition("_")
        if kind not in ("bitwise", "logical") or name not in _OF_MASKS or len(node.args) != 2:
            continue
        values = [part.meta.get("val") if hasattr(part, "meta") else None for part in node.args]
        if all(isinstance(v, Tensor) and v.dtype == torch.bool and v.device.type == "cpu" for v in values):
            node.target = _OF_MASKS[name]


def after_autograd(fn: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """``fn(*operands)``, whose derivatives are operations like others: but the graph that torch.export makes is one before autograd,
    which cannot see them. There a graph of ``fn`` is made first, as it is after autograd; the graph of the rest is then one of that.
    """
    tracer = proxy_tensor._CURRENT_MAKE_FX_TRACER
    if tracer is None or not tracer.pre_dispatch:
        return fn(*operands)
    structure: list[Any] = []

    def tensors(*operands: Any) -> list[Any]:
        with torch.no_grad():
            leaves, tree = pytree.tree_flatten(fn(*operands))
        structure.append((leaves, tree))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    tracer.pre_dispatch = False
    try:
        with torch._C.DisableTorchFunction():
            keys = torch._C._dispatch_tls_local_include_set().remove(torch._C.DispatchKey.PreDispatch)
            graph = materialize_as_graph(tensors, tuple(operands), keys)
    finally:
        tracer.pre_dispatch = True
    graph.graph.eliminate_dead_code()
    graph.recompile()
    with _modules_by_name():
        results, (leaves, tree) = iter(graph(*operands)), structure[0]
    return pytree.tree_unflatten([next(results) if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)


@contextmanager
def _modules_by_name() -> Iterator[None]:
    """The modules around a loop by the names of their classes: torch.export saves no classes inside one."""
    stack = traceback.current_meta.get("nn_module_stack", {})
    named = {
        key: (path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}")
        for key, (path, kind) in stack.items()
    }
    if stack:
        traceback.current_meta["nn_module_stack"] = named
    try:
        yield
    finally:
        if stack:
            traceback.current_meta["nn_module_stack"] = stack


@contextmanager
def sizes_refused() -> Iterator[None]:
    """Whoever asks a size that may change for its value is told by a RuntimeError that it has none.

    The public ways to say so of a size, ``torch._check`` and ``mark_dynamic``, fail when all has been made; here something else can be
    tried. One thread at a time makes graphs: Dynamo holds a lock.
    """
    value = SymNode.guard_int

    def refuse(size: Any, file: str, line: int) -> int:
        if not size.expr.is_number:
            raise RuntimeError(f"{size.expr} stays open: a graph is made for any value of it")
        return value(size, file, line)

    SymNode.guard_int = refuse  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        SymNode.guard_int = value  # type: ignore[method-assign]


def built_extension(signature: list[str], source: str) -> Callable[..., Any]:
    """A function in C++, built and kept by inductor's own machinery, with its flags: ``torch.utils.cpp_extension`` needs ninja."""
    from torch._inductor.async_compile import AsyncCompile

    built: Any = AsyncCompile().cpp_pybinding(signature, source)
    found: Callable[..., Any] = built.result() if hasattr(built, "result") else built
    return found


def graph_break(message: str) -> None:
    """The graph ends here, for a reason; the public way takes none."""
    torch._dynamo.graph_break(msg=message)


def read_by_dynamo(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``fn``, read by Dynamo where torch.export has not done that: it runs the code itself, on tensors without values."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return _hop_compile_and_call(call, args, kwargs)
