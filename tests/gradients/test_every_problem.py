"""Every class of problem, however its tensors are passed, has exact first and second derivatives in every mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from .problems import FUNCTIONS, inputs

every_problem = pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
F = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.sampled(3)
@every_problem
def test_first_derivatives_reverse_and_forward_equal_finite_differences(f: F) -> None:
    assert gradcheck(f, inputs(), check_forward_ad=True, check_batched_grad=True, fast_mode=True)


@pytest.mark.sampled(3)
@every_problem
def test_second_derivatives_equal_finite_differences(f: F) -> None:
    assert gradgradcheck(f, inputs(), fast_mode=True)


@pytest.mark.sampled(5)
@every_problem
def test_jacobians_agree_in_every_nesting_of_transforms(f: F) -> None:
    W, x = (t.detach() for t in inputs())
    xs = torch.stack([x, x / 3, -x])
    J = torch.stack([torch.autograd.functional.jacobian(lambda x: f(W, x), x) for x in xs])
    assert torch.allclose(torch.vmap(lambda x: f(W, x))(xs), torch.stack([f(W, x) for x in xs]), atol=1e-9)
    assert torch.allclose(torch.func.jacrev(f, 1)(W, x), J[0], atol=1e-8)
    assert torch.allclose(torch.func.jacfwd(f, 1)(W, x), J[0], atol=1e-8)
    assert torch.allclose(torch.vmap(torch.func.jacrev(f, 1), (None, 0))(W, xs), J, atol=1e-8)
    together = torch.func.jacrev(torch.vmap(f, (None, 0)), 1)(W, xs)
    for i in range(len(xs)):
        for k in range(len(xs)):
            block = together[i].select(together[i].ndim - 2, k)
            assert torch.allclose(block, J[i] if i == k else torch.zeros_like(J[i]), atol=1e-8)


@pytest.mark.sampled(7)
@every_problem
def test_hessians_agree_in_every_nesting_of_transforms(f: F) -> None:
    W, x = (t.detach() for t in inputs())

    def loss(W: Tensor, x: Tensor) -> Tensor:
        return (f(W, x) ** 3).sum()

    xs = torch.stack([x, x / 3])
    H = torch.stack([torch.autograd.functional.hessian(lambda x: loss(W, x), x) for x in xs])
    assert torch.allclose(torch.func.hessian(loss, 1)(W, x), H[0], atol=1e-7)
    jacrev, jacfwd = torch.func.jacrev, torch.func.jacfwd
    assert torch.allclose(jacrev(jacrev(loss, 1), 1)(W, x), H[0], atol=1e-7)
    assert torch.allclose(jacrev(jacfwd(loss, 1), 1)(W, x), H[0], atol=1e-7)
    assert torch.allclose(jacfwd(jacfwd(loss, 1), 1)(W, x), H[0], atol=1e-7)
    assert torch.allclose(torch.vmap(jacfwd(jacfwd(loss, 1), 1), (None, 0))(W, xs), H, atol=1e-7)
    assert torch.allclose(torch.vmap(torch.func.hessian(loss, 1), (None, 0))(W, xs), H, atol=1e-7)


@pytest.mark.sampled(3)
@every_problem
def test_per_sample_gradients_equal_those_taken_one_by_one(f: F) -> None:
    W, x = (t.detach() for t in inputs())
    xs = torch.stack([x, x / 3])

    def loss(W: Tensor, x: Tensor) -> Tensor:
        return f(W, x).square().sum()

    together = torch.vmap(torch.func.grad(loss), (None, 0))(W, xs)
    for x, grad in zip(xs, together, strict=True):
        V = W.clone().requires_grad_()
        (alone,) = torch.autograd.grad(loss(V, x), V)
        assert torch.allclose(grad, alone, atol=1e-8)
