"""Every name of PyTorch's own that we use, tried: a release that moves or changes one fails here or in the files test_private_*.py, by
the name of what it breaks. No other module uses one."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import torchimplicit.private as private
from torchimplicit.private import operators
from torchimplicit.private import parametrize as cache

SOURCE = Path(private.__file__).parent.parent
PYTHONS = {"_replace", "_fields", "_getframe"}  # of named tuples and of sys
LINEAR_OPERATORS = {"_matmul", "_t_matmul"}  # which its documentation has each class of operators define


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
    assert [use for use in outside if use.split()[-1] not in PYTHONS | LINEAR_OPERATORS | {"_start"}] == []


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
