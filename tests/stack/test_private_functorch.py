"""What we use of torch.func's own names, each tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchimplicit.private import autograd, functorch
from torchimplicit.private.dynamo import AVAILABLE


def test_the_calls_that_begin_a_level_are_known_by_name() -> None:
    """As Dynamo records them; a graph with one that is not known would be evaluated with the wrong levels."""
    if not AVAILABLE:
        pytest.skip("solves are in no graph of an older torch")
    called: set[str] = set()

    def note(graph: Any, inputs: Any) -> Any:
        called.update(getattr(node.target, "__name__", "") for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    torch.compile(torch.vmap(torch.func.grad(lambda x: x.sin())), fullgraph=True, backend=note)(torch.ones(2))
    assert set(functorch.BEGINS) <= called


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
