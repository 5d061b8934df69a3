"""What is held between forward and backward does not grow with the steps; nothing is held after both."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import torchimplicit as ti

from ..every_solver import GENERAL
from .layers import batch, layer

N = 30
ROWS = 400


class Births(TorchDispatchMode):
    """Remembers, by weak reference, the storage of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.born: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self.born.append(weakref.ref(tensor.untyped_storage()))
        return out

    def live_bytes(self) -> int:
        storages = {storage.data_ptr(): storage.nbytes() for ref in self.born if (storage := ref()) is not None}
        return sum(storages.values())


def held(steps: int, solver: Any, adjoint: Any) -> int:
    """Bytes made by the forward and alive after it, for so many steps of a contraction too slow to converge in them."""
    generator = torch.Generator().manual_seed(0)
    W = 0.9999 * torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=generator))[0]
    W.requires_grad_()
    x = torch.randn(N, dtype=torch.float64, generator=generator)
    with Births() as births:
        z, _info = ti.fixed_point(
            lambda z: W @ z + x + 1e-3 * z.sin(),
            torch.zeros(N, dtype=torch.float64),
            solver=solver,
            adjoint=adjoint,
            rtol=0.0,
            atol=0.0,
            max_steps=steps,
            on_failure="ignore",
        )
    gc.collect()
    assert z.requires_grad
    return births.live_bytes()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("solver", GENERAL)
def test_the_implicit_way_holds_as_much_after_10_steps_as_after_1000(solver: str) -> None:
    assert held(10, solver, ti.Implicit()) == held(1000, solver, ti.Implicit())


class Peak(Births):
    """The most bytes that are alive at once, besides those of the given tensors."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.born = [ref for ref in self.born if (made := ref()) is not None and made.data_ptr() not in self.given]
        self.bytes = max(self.bytes, self.live_bytes())
        return out


def peak(steps: int, solver: str) -> float:
    """The peak of a forward of so many steps and its backward, in units of z, of a cell with as little to keep as tanh(z W + x)."""
    W = 0.45 * torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    x = torch.randn(ROWS, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z0, c = torch.zeros_like(x), x.flip(0)
    W.requires_grad_()
    with Peak(W, x, z0, c) as made:
        z = ti.fixed_point(
            lambda z: torch.tanh(z @ W + x),
            z0,
            solver=solver,
            adjoint=ti.Implicit(rtol=1e-6),
            batch_ndim=1,
            rtol=0.0,
            atol=0.0,
            max_steps=steps,
            on_failure="ignore",
        ).value
        torch.autograd.grad(z, W, c)
    return made.bytes / (ROWS * N * 8)


def test_a_training_step_needs_few_copies_of_z_however_many_steps_it_takes() -> None:
    # z*, two of the graph there, u, three of a product with it, and the small matrices; a loop by hand with a hook comes to six.
    for method, copies in (("picard", 6.7), ("anderson", 8 + 2 * 6)):  # with the windows
        few, many = peak(10, method), peak(20, method)  # beyond, rounding stops Anderson's
        assert few == pytest.approx(many, abs=0.1)
        assert many <= copies


def test_the_explicit_way_holds_more_with_every_step() -> None:
    few, some, many = (held(k, "picard", ti.Unrolled(steps=k)) for k in (10, 20, 40))
    assert many - some == 2 * (some - few)
    assert some - few >= 10 * N * 8


def test_checkpointing_the_steps_holds_less() -> None:
    assert held(50, "anderson", ti.Unrolled(steps=50, checkpoint=True)) < held(50, "anderson", ti.Unrolled(steps=50))


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.sampled(11)
@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize(
    "use", ["forward", "backward", "double backward", "failure", "func.grad", "checkpoint", "hooks"]
)
def test_nothing_outlives_its_use_by_a_reference_cycle(no_collector: None, solver: str, use: str) -> None:
    def scene() -> list[weakref.ref[Any]]:
        W = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 20
        x = torch.ones(N, dtype=torch.float64)
        zero = torch.zeros(N, dtype=torch.float64)
        limit = {"max_steps": 1, "on_failure": "ignore"} if use == "failure" else {}

        def solve(W: Tensor) -> Tensor:
            return ti.fixed_point(lambda z: torch.tanh(W @ z + x), zero, solver=solver, **limit).value

        if use == "func.grad":
            grad = torch.func.grad(lambda W: solve(W).sum())(W)
            return [weakref.ref(W), weakref.ref(x), weakref.ref(grad)]
        W.requires_grad_()
        if use == "checkpoint":
            z = checkpoint(lambda W: solve(W).cos(), W, use_reentrant=False)
        else:
            hooks = saved_tensors_hooks(Tensor.clone, Tensor.clone) if use == "hooks" else nullcontext()
            with hooks:
                z = solve(W)
        if use in ("backward", "failure", "checkpoint", "hooks"):
            z.sum().backward()
        if use == "double backward":
            (grad,) = torch.autograd.grad(z.sum(), W, create_graph=True)
            grad.square().sum().backward()
        return [weakref.ref(W), weakref.ref(x), weakref.ref(z)]

    assert [ref() for ref in scene()] == [None, None, None]


@pytest.mark.parametrize("use", ["backward", "not converged", "not captured", "vmap", "forward mode"])
def test_no_module_outlives_its_use_by_a_reference_cycle(no_collector: None, use: str) -> None:
    def scene() -> list[weakref.ref[Any]]:
        cell = nn.BatchNorm1d(5).double() if use == "not captured" else None
        module, x = layer("newton", cell), batch()
        if use == "backward":
            module(x).sum().backward()
        if use == "not converged":
            module.options.update(max_steps=1, on_failure="raise")
            with pytest.raises(ti.ConvergenceError):
                module(x)
        if use == "not captured":
            with pytest.raises(ti.CaptureError):
                ti.root(lambda z: z - 0.1 * module.cell(z) + x, torch.zeros_like(x))
        if use == "vmap":
            torch.vmap(lambda x: module(x[None]))(x)
        if use == "forward mode":
            torch.func.jvp(module, (x,), (x,))
        return [weakref.ref(thing) for thing in (module, x, *module.parameters())]

    assert not any(ref() is not None for ref in scene())
