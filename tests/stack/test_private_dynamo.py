"""What we use of the own names of Dynamo and of inductor, each tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit.private as private


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


def test_a_size_that_may_change_is_not_made_a_constant() -> None:
    from torchimplicit.private import dynamo

    if not dynamo.AVAILABLE:
        pytest.skip("solves are in no graph of an older torch")
    told = []

    def graph_of_any_size(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        size = next(each for each in inputs if isinstance(each, torch.SymInt))
        with dynamo.sizes_refused():
            assert bool(size + 2 > size)
            with pytest.raises(RuntimeError, match="stays open"):
                int(size)
        told.append(int(size))  # outside it is one
        return graph.forward

    torch._dynamo.reset()
    torch.compile(lambda x: x + x.shape[0], backend=graph_of_any_size, dynamic=True)(torch.ones(5))
    assert told == [5]
