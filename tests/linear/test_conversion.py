"""What counts as a matrix, and what is said when something does not."""

from __future__ import annotations

import pytest
import torch

from torchimplicit.linear import LU, Dense, LinearOperator, MatrixFree, Sparse, as_operator


def test_each_description_becomes_its_operator() -> None:
    A, b = torch.randn(5, 3, 3), torch.randn(2, 5, 3)
    assert isinstance(as_operator(A, like=b), Dense)
    assert isinstance(as_operator(A[0].to_sparse_coo(), like=b), Sparse)
    operator = Dense(A)
    assert as_operator(operator, like=b) is operator
    free = as_operator(lambda x: 2 * x, like=b)
    assert isinstance(free, MatrixFree)
    assert (free.shape, free.dtype) == ((2, 5, 3, 3), torch.float32)


def test_a_single_right_hand_side_serves_a_batch_of_matrices() -> None:
    A, b = torch.randn(5, 3, 3), torch.randn(3)
    x = LU().factorize(as_operator(A, like=b)).solve(b)
    torch.testing.assert_close(x, torch.linalg.solve(A, b.expand(5, 3)))


def test_a_callable_needs_a_right_hand_side() -> None:
    with pytest.raises(ValueError, match=r"pass like=b"):
        as_operator(lambda x: x)
    with pytest.raises(ValueError, match=r"0-d.*unsqueeze"):
        as_operator(lambda x: x, like=torch.tensor(1.0))


def test_other_types_are_named() -> None:
    with pytest.raises(TypeError, match=r"A is a list; expected a tensor .* callable"):
        as_operator([[1.0]])


@pytest.mark.parametrize(
    ("A", "b", "error", "message"),
    [
        ((3, 3), (4,), ValueError, r"b has shape \(4,\); expected \(\.\.\., 3\).*last dimension must have size 3"),
        ((3, 3), (3, 2), ValueError, r"b\.mT"),
        ((5, 3, 3), (4, 3), ValueError, r"expected \(\.\.\., 5, 3\).*end with the operator's batch shape \(5,\)"),
        ((1, 3, 3), (5, 3), ValueError, r"single dimensions"),
        ((3, 3), (), ValueError, r"last dimension must have size 3"),
    ],
)
def test_shapes_that_do_not_belong_together(A: tuple, b: tuple, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        as_operator(torch.randn(A), like=torch.randn(b))


def test_dtypes_that_differ() -> None:
    with pytest.raises(TypeError, match=r"b has dtype torch.float64 .* torch.float32.*b\.to\(torch.float32\)"):
        as_operator(torch.eye(2), like=torch.ones(2, dtype=torch.float64))


def test_a_right_hand_side_that_is_no_tensor() -> None:
    operator: LinearOperator = Dense(torch.eye(2))
    with pytest.raises(TypeError, match=r"b is a list; expected a tensor of shape \(\.\.\., 2\)"):
        LU().factorize(operator).solve([1.0, 2.0])
