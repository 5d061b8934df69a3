"""Every name of PyTorch's own that we use, tried: a release that moves or changes one fails here, by the name of what it breaks."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode

import torchimplicit.private as private
from torchimplicit.private import autograd, functorch, operators
from torchimplicit.private import parametrize as cache

SOURCE = Path(private.__file__).parent.parent
PYTHONS = {"_replace", "_fields", "_getframe"}  # of named tuples and of sys


def test_no_other_module_uses_a_private_name_of_torch() -> None:
    found = []
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        of_self = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)]
        own |= {node.attr for node in of_self}
        own |= {
            node.target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _private(node.attr) and node not in of_self and node.attr not in own:
                found.append(f"{path.name}:{node.lineno} {node.attr}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                found += [f"{path.name}:{node.lineno} {name}" for name in names if _private(name)]
    outside = [use for use in found if use.split(":")[0] not in {p.name for p in (SOURCE / "private").glob("*.py")}]
    assert [use for use in outside if use.split()[-1] not in PYTHONS | {"_start"}] == []


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_pytree_flattens_in_order_and_builds_again() -> None:
    leaves, tree = private.pytree.tree_flatten({"a": [1, (2, None)], "b": 3})
    assert leaves == [1, 2, None, 3]
    assert private.pytree.tree_unflatten([4, 5, 6, 7], tree) == {"a": [4, (5, 6)], "b": 7}


def test_a_dispatch_mode_sees_operators_and_their_arguments_have_names() -> None:
    seen = []

    class Sees(private.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append((func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Sees():
        torch.ones(3).sum(0, keepdim=True)
    func, args, kwargs = next(call for call in seen if "sum" in str(call[0]))
    assert operators.argument(func, "keepdim", args, kwargs) is True
    assert operators.argument(func, "dtype", args, kwargs) is None
    assert operators.argument(func, "no such", args, kwargs) is None
    assert operators.writes(torch.ops.aten.add_.Tensor)
    assert not operators.writes(torch.ops.aten.add.Tensor)


# torch.func


def test_levels_are_seen_counted_and_put_aside() -> None:
    seen: list[Any] = []

    def f(x: Tensor) -> Tensor:
        seen.append((functorch.active(), functorch.current_level(), functorch.level(x), functorch.wrapped(x)))
        with functorch.none_active():
            seen.append(functorch.active())
        return x.sum()

    torch.func.grad(torch.func.grad(f))(torch.tensor(1.0))
    assert seen == [(True, 2, 2, True), False]
    x = torch.ones(())
    assert not functorch.active()
    assert (functorch.current_level(), functorch.level(x), functorch.wrapped(x)) == (-1, -1, False)


def test_the_wrapper_of_a_vmap_is_opened_and_made_again() -> None:
    x = torch.arange(6.0).reshape(2, 3)

    def f(row: Tensor) -> Tensor:
        assert functorch.batched(row)
        assert functorch.batch_dim(row) == 1
        assert functorch.inside(row) is x
        return functorch.rewrapped(2 * functorch.inside(row), row)

    torch.testing.assert_close(torch.vmap(f, in_dims=1, out_dims=1)(x), 2 * x)
    torch.func.grad(lambda y: (functorch.batched(y) and 1) * y.sum() + y.sum())(x)


def test_a_wrapper_whose_level_has_ended_is_taken_off() -> None:
    kept: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        kept.append(x)
        return x.sum()

    torch.func.grad(f)(torch.ones(2))
    inner = functorch.without_dead_wrapper(kept[0])
    assert inner is not kept[0]
    assert functorch.level(inner) == -1


def test_a_sweep_over_rows_takes_none_for_what_there_is_no_gradient_of() -> None:
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    out = x**2
    rows = torch.eye(3)
    of_x, of_y = functorch.over_rows(lambda u: autograd.grads(out, (x, y), u, create_graph=False), rows)
    assert of_y is None
    torch.testing.assert_close(of_x, 2 * torch.eye(3))
    assert not functorch.active()


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_a_vmap_tells_what_it_does_with_random_numbers(randomness: str) -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(functorch.vmaps_with_different_random_numbers())
        return x

    torch.vmap(f, randomness=randomness)(torch.ones(2))
    assert seen == [randomness == "different"]


def test_what_happens_out_of_sight_is_seen_by_no_function_mode() -> None:
    seen = []

    class Sees(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Sees():
        with functorch.out_of_sight():
            torch.ones(2) + 1
        assert not seen
        torch.ones(2) + 1
    assert seen


# autograd


def test_the_engine_gives_what_torch_autograd_grad_does() -> None:
    x, y = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(2, requires_grad=True)
    out, u = x**3, torch.tensor([1.0, 3.0])
    grads = autograd.grads(out, (x, y), u, create_graph=True)
    expected = torch.autograd.grad(out, (x, y), u, create_graph=True, allow_unused=True)
    torch.testing.assert_close(grads[0], expected[0])
    assert grads[1] is None
    assert grads[0] is not None
    assert grads[0].requires_grad
    assert x.grad is None


def test_nodes_tell_where_a_graph_ends_and_when_they_were_made() -> None:
    x = torch.ones(2, requires_grad=True)
    first = x * 2
    second = first + 1
    assert first.grad_fn is not None
    assert second.grad_fn is not None
    leaf = first.grad_fn.next_functions[0][0]
    assert autograd.is_leaf(leaf)
    assert not autograd.is_leaf(first.grad_fn)
    assert leaf.variable is x  # type: ignore[attr-defined]
    assert autograd.sequence(first.grad_fn) < autograd.sequence(second.grad_fn)


def test_nodes_tell_what_multiplies_with_a_matrix_by_rows() -> None:
    A, z = torch.eye(3).to_sparse_csr(), torch.ones(3, requires_grad=True)
    columns = z.unsqueeze(-1)
    products = [A @ z, torch.mv(A, z), torch.mm(A, columns), torch.sparse.mm(A, columns)]
    products += [torch.addmv(torch.zeros(3), A, z), torch.addmm(torch.zeros(3, 1), A, columns)]
    assert all(autograd.multiplies_by_rows(product.grad_fn) for product in products)
    others = [A.to_dense() @ z, A.to_sparse_coo() @ z, A.t() @ z, 2 * z]
    assert not any(autograd.multiplies_by_rows(other.grad_fn) for other in others)


def test_the_node_of_a_compiled_function_is_known_by_its_name() -> None:
    torch._dynamo.reset()
    out = torch.compile(lambda x: (x * 2).sin(), backend="aot_eager")(torch.ones(2, requires_grad=True))
    assert autograd.is_compiled(out.grad_fn)
    assert not autograd.is_compiled((torch.ones(2, requires_grad=True) * 2).grad_fn)


def test_changes_in_place_are_counted() -> None:
    x = torch.zeros(2)
    before = autograd.version(x)
    x += 1
    assert autograd.version(x) == before + 1
    with torch.inference_mode():
        assert autograd.version(torch.zeros(2)) == 0


def test_views_and_what_shares_memory_are_known() -> None:
    x, y = torch.zeros(4), torch.zeros(4)
    assert autograd.is_view_of(x[:2], x)
    assert not autograd.is_view_of(y[:2], x)
    assert autograd.storage(x[1:]) == autograd.storage(x.data) != autograd.storage(y)


def test_the_error_of_a_changed_variable_is_known_by_its_words() -> None:
    x = torch.zeros(2, requires_grad=True)
    with pytest.raises(RuntimeError) as raised:
        x.view_as(x)[0].add_(1)
    assert autograd.changes_a_leaf(raised.value)
    assert not autograd.changes_a_leaf(RuntimeError("another"))


def test_the_error_of_a_saved_tensor_that_was_changed_is_known_by_its_words() -> None:
    x, y = torch.zeros(2, requires_grad=True), torch.zeros(2)
    product = x * y
    y.add_(1)
    with pytest.raises(RuntimeError) as raised:
        product.sum().backward()
    assert autograd.changed_in_place(raised.value)
    product = (x * x).sum()
    product.backward()
    with pytest.raises(RuntimeError) as raised:
        product.backward()  # a second time through the graph
    assert not autograd.changed_in_place(raised.value)


def test_the_error_of_a_forbidden_random_number_is_known_by_its_words() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.vmap(torch.rand_like)(torch.ones(2))
    assert autograd.forbids_random_numbers(raised.value)
    assert not autograd.forbids_random_numbers(RuntimeError("another"))


def test_a_level_of_forward_mode_is_seen() -> None:
    assert not autograd.forward_mode()
    with forward_ad.dual_level():
        assert autograd.forward_mode()


class Doubled(torch.autograd.Function):
    """2 x; its tangent is computed by forward mode inside its own."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return 2 * v

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        with autograd.forward_mode_on():
            _, inner = torch.func.jvp(lambda x: 2 * x, (torch.zeros_like(dx),), (dx,))
        return inner


def test_forward_mode_works_inside_a_tangent() -> None:
    _, tangent = torch.func.jvp(Doubled.apply, (torch.ones(2),), (torch.ones(2),))
    torch.testing.assert_close(tangent, torch.full((2,), 2.0))


def test_a_function_is_applied_as_torch_does() -> None:
    x = torch.ones(2, requires_grad=True)
    out = autograd.apply(Doubled, x)
    torch.testing.assert_close(out, 2 * x)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], torch.full((2,), 2.0))


def test_custom_functions_are_shown_while_that_is_asked_for() -> None:
    before, seen = torch.autograd.Function.apply, []

    def shown(apply: Any, *args: Any) -> Any:
        seen.append(args)
        return apply(*args)

    autograd.show_custom_functions(shown)
    try:
        out = Doubled.apply(torch.ones(1))
    finally:
        autograd.show_custom_functions(None)
    assert len(seen) == 1
    assert float(out) == 2.0
    assert torch.autograd.Function.apply == before
    Doubled.apply(torch.ones(1))
    assert len(seen) == 1


def test_batched_cotangents_of_the_old_kind_are_exchanged() -> None:
    seen = []

    class Tripled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 3 * x

        @staticmethod
        def backward(ctx: Any, v: Tensor) -> Any:
            seen.append(autograd.is_batched_by_autograd(v))

            def pullback(v: Tensor) -> tuple[Tensor | None, ...]:
                assert not autograd.is_batched_by_autograd(v)
                return (3 * v, None)

            return autograd.over_batched(pullback, v)[0]

    x = torch.ones(2, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (jacobian,) = torch.autograd.grad(Tripled.apply(x), x, torch.eye(2), is_grads_batched=True)
    assert seen == [True]
    torch.testing.assert_close(jacobian, 3 * torch.eye(2))


# torch.nn.utils.parametrize


def test_weights_that_are_kept_are_seen_and_kept_again() -> None:
    layer = parametrizations.orthogonal(nn.Linear(2, 2))
    assert not cache.cached()
    assert cache.cache_now() is None
    with parametrize.cached():
        weight = layer.weight
        assert cache.cached()
        kept = cache.cache_now()
    assert kept is not None
    assert any(value is weight for value in kept.values())
    with cache.cache_as_it_was(kept):
        assert layer.weight is weight
    assert layer.weight is not weight


# Dynamo and inductor


def test_dynamo_is_seen_once_it_is_loaded() -> None:
    import torch._dynamo  # noqa: F401

    assert private.dynamo_is_loaded()


def test_a_reason_is_given_for_a_break_of_the_graph() -> None:
    from torchimplicit.private import dynamo

    if not dynamo.AVAILABLE:
        pytest.skip("an older torch takes no message")

    def f(x: Tensor) -> Tensor:
        dynamo.graph_break("for this reason")
        return x

    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="for this reason"):
        torch.compile(f, fullgraph=True, backend="eager")(torch.ones(2))


def test_a_function_in_c_is_built() -> None:
    from torchimplicit.private import dynamo

    if not dynamo.AVAILABLE:
        pytest.skip("solves are in no graph of an older torch")
    source = 'extern "C" void kernel(float* x, const int64_t n) { for (int64_t i = 0; i < n; ++i) x[i] *= 2; }'
    x = torch.ones(3)
    dynamo.built_extension(["float*", "const int64_t"], "#include <cstdint>\n" + source)(x, 3)
    torch.testing.assert_close(x, torch.full((3,), 2.0))


def test_masks_are_joined_by_what_is_fast_and_numbers_as_they_were() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    from torchimplicit.private import dynamo

    def f(p: Tensor, q: Tensor, i: Tensor) -> tuple[Tensor, ...]:
        return p & q, p | q, torch.logical_and(p, ~q), torch.logical_or(p, q), i & 6, i | i.flip(0), (p & q) | (i > 2)

    p, q, i = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]), torch.arange(4) + 1
    graph = make_fx(f)(p, q, i)
    dynamo.cheap_masks(graph)
    expected = f(p, q, i)
    for found, wanted in zip(graph(p, q, i), expected, strict=True):
        assert found.dtype == wanted.dtype
        assert found.tolist() == wanted.tolist()
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum(name in ("aten.minimum.default", "aten.maximum.default") for name in called) == 6, called
    assert sum("bitwise_and" in name or "bitwise_or" in name for name in called) == 2, called  # of numbers


def test_equal_operations_become_one_and_copies_stay_two() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    from torchimplicit.private import dynamo

    def f(x: Tensor) -> tuple[Tensor, ...]:
        return x.sin() * x.detach().sin(), x + 1, x + 1.0, x.clone(), x.clone()

    def changes(x: Tensor) -> Tensor:
        return x.new_zeros(3).add_(x) + x.new_zeros(3)

    for function, x, expected in ((f, torch.arange(3), 6), (changes, torch.arange(3), 4)):
        graph = make_fx(function)(x)
        dynamo.merge_equal(graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        calls = [node for node in graph.graph.nodes if node.op == "call_function"]
        assert len(calls) == expected, graph.code
        torch.testing.assert_close(graph(x), function(x), rtol=0, atol=0)


def test_a_dispatch_mode_sees_operators_and_what_they_write() -> None:
    seen = []

    class Seeing(operators.DispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            written = operators.written(func, args, kwargs or {})
            seen.append((operators.name(func), [each is args[0] for each in written], operators.parameters(func)[0]))
            return func(*args, **(kwargs or {}))

    x = torch.zeros(2)
    with Seeing():
        x.add_(1)
        x.roll(1)
    assert seen == [("add_", [True], ("self", False)), ("roll", [], ("self", False))]
