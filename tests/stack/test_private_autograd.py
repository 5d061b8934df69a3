"""What we use of autograd's own names, each tried."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from torchimplicit.private import autograd


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


def test_hooks_for_saved_tensors_are_put_aside_and_back() -> None:
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    x = torch.ones(2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with autograd.without_hooks():
            torch.func.vjp(torch.exp, torch.ones(2))
            x.exp()
        assert not packed
        x.exp()
    assert len(packed) == 1
