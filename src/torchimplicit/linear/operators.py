"""Linear operators: what a linear solver may ask of a matrix, whether or not its entries exist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.autograd.products import Linearisation
from torchimplicit.autograd.transforms import inside_functorch
from torchimplicit.graph.loop import Operands
from torchimplicit.linear.vectors import from_columns, lead_shape, to_columns

CONCURRENT_ENTRIES = 2**20  # vmap may copy the matrix behind a product for each vector of a sweep: bounds those copies


class LinearOperator(ABC):
    """A batch of linear maps, one (m, n) matrix A for each index of `batch_shape`.

    A subclass implements `matvec` and `rmatvec` for vectors of exactly the operator's batch shape. Solvers call
    `apply`, which also takes several vectors per matrix.

    Attributes:
        shape: (*batch_shape, m, n).
        batch_shape: the shape before the last two dimensions.
        dtype, device: of the matrix and of the vectors it is applied to.
        symmetric: A is its own conjugate transpose (Hermitian, for complex dtypes). A promise, never checked.
        positive_definite: A is Hermitian positive definite (implies `symmetric`). A promise likewise.
        explicit: the entries are at hand, so that `to_dense` costs no products.
        leading: `matvec` and `rmatvec` take further leading dimensions, (*lead, *batch_shape, n), by themselves.
    """

    explicit = False
    leading = False
    _original: LinearOperator | None = None  # set on an adjoint, so that A.H.H is A

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        symmetric: bool = False,
        positive_definite: bool = False,
    ) -> None:
        self.shape = torch.Size(shape)
        self.batch_shape = self.shape[:-2]
        self.dtype = dtype
        self.device = device
        self.symmetric = symmetric or positive_definite
        self.positive_definite = positive_definite

    @abstractmethod
    def matvec(self, x: Tensor) -> Tensor:
        """A x: (*batch_shape, n) -> (*batch_shape, m)."""

    @abstractmethod
    def rmatvec(self, y: Tensor) -> Tensor:
        """Aᴴ y, with the conjugate transpose: (*batch_shape, m) -> (*batch_shape, n)."""

    def apply(self, x: Tensor, adjoint: bool = False) -> Tensor:
        """A x, or Aᴴ x, for x of shape (*lead, *batch_shape, n): every vector of `lead` by the same A.

        An operator that is not `leading` is swept over the vectors by `torch.vmap`, as many at a time as memory
        allows. Large ones, and products that cannot be vmapped (they read a value, say, or use a custom Function
        without a vmap rule), take the vectors one by one.
        """
        product = self.rmatvec if adjoint else self.matvec
        lead = lead_shape(x, self.batch_shape)
        if self.leading or not lead:
            return product(x)
        flat = x.flatten(0, len(lead) - 1)
        return self._sweep(product, flat, self.shape[-1 if adjoint else -2]).unflatten(0, lead)

    def _sweep(self, product: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
        if not len(x):
            return x.new_zeros((*x.shape[:-1], size))
        at_once = CONCURRENT_ENTRIES // max(1, x[0].numel() * size)
        if at_once > 1:
            try:
                return torch.vmap(product, chunk_size=at_once)(x)
            except Exception:  # if the product itself is at fault, it fails again below
                pass
        return torch.stack([product(v) for v in x])

    def to_dense(self) -> Tensor:
        """The matrix A, (*batch_shape, m, n), from one sweep of `apply` over the columns of the identity."""
        n = self.shape[-1]
        eye = torch.eye(n, dtype=self.dtype, device=self.device)
        columns = eye.reshape(n, *(1,) * len(self.batch_shape), n).expand(n, *self.batch_shape, n)
        return self.apply(columns).movedim(0, -1)

    @property
    def H(self) -> LinearOperator:
        """The adjoint Aᴴ. `A.H.H` is A itself, and so is `A.H` where A is symmetric."""
        if self.symmetric:
            return self
        if self._original is not None:
            return self._original
        adjoint = self._adjoint()
        adjoint._original = self
        return adjoint

    @property
    def T(self) -> LinearOperator:
        """The transpose, without conjugation; for real dtypes the same as `H`."""
        return Transpose(self) if self.dtype.is_complex else self.H

    @property
    def operands(self) -> Operands:
        """What its products use, for the body of a loop in a graph."""
        return Operands(())

    def _adjoint(self) -> LinearOperator:
        return Adjoint(self)

    def __repr__(self) -> str:
        facts = "".join(f", {name}" for name in ("symmetric", "positive_definite") if getattr(self, name))
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype}{facts})"


class Adjoint(LinearOperator):
    """Aᴴ as a view of A: the two products change places."""

    def __init__(self, operator: LinearOperator) -> None:
        *batch, m, n = operator.shape
        super().__init__((*batch, n, m), operator.dtype, operator.device)
        self.operator = operator
        self.explicit, self.leading = operator.explicit, operator.leading

    def matvec(self, x: Tensor) -> Tensor:
        return self.operator.rmatvec(x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self.operator.matvec(y)

    def to_dense(self) -> Tensor:
        return self.operator.to_dense().mH


class Transpose(LinearOperator):
    """Aᵀ as a view of a complex A: Aᵀ x is the conjugate of Aᴴ x̄."""

    def __init__(self, operator: LinearOperator) -> None:
        *batch, m, n = operator.shape
        facts = {"symmetric": operator.symmetric, "positive_definite": operator.positive_definite}
        super().__init__((*batch, n, m), operator.dtype, operator.device, **facts)
        self.operator = operator
        self.explicit, self.leading = operator.explicit, operator.leading

    def matvec(self, x: Tensor) -> Tensor:
        return self.operator.rmatvec(x.conj()).conj()

    def rmatvec(self, y: Tensor) -> Tensor:
        return self.operator.matvec(y.conj()).conj()

    def to_dense(self) -> Tensor:
        return self.operator.to_dense().mT

    @property
    def T(self) -> LinearOperator:
        return self.operator


class Dense(LinearOperator):
    """A matrix given by its entries, A of shape (*batch_shape, m, n)."""

    explicit = True
    leading = True

    def __init__(self, A: Tensor, symmetric: bool = False, positive_definite: bool = False) -> None:
        if A.ndim < 2 or not (A.is_floating_point() or A.is_complex()):
            raise ValueError(
                f"Dense got a tensor of shape {tuple(A.shape)} and dtype {A.dtype}; "
                "expected (..., m, n) of a floating or complex dtype"
            )
        super().__init__(A.shape, A.dtype, A.device, symmetric=symmetric, positive_definite=positive_definite)
        self.A = A

    def matvec(self, x: Tensor) -> Tensor:
        return self._product(self.A, x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self._product(self.A.mH, y)

    def _product(self, A: Tensor, x: Tensor) -> Tensor:
        return from_columns(A @ to_columns(x, self.batch_shape), lead_shape(x, self.batch_shape))

    def to_dense(self) -> Tensor:
        return self.A

    @property
    def operands(self) -> Operands:
        return _Entries(self)

    def _adjoint(self) -> LinearOperator:
        return Dense(self.A.mH)


class _Entries(Operands):
    def __init__(self, operator: Dense) -> None:
        super().__init__((operator.A,))
        self.operator = operator

    def _name(self, names: Sequence[Any]) -> None:
        super()._name(names)
        (self.operator.A,) = self.tensors


class Diagonal(LinearOperator):
    """The diagonal matrix of d, shape (*batch_shape, n). Symmetric where d is real."""

    explicit = True
    leading = True

    def __init__(self, d: Tensor, positive_definite: bool = False) -> None:
        if d.ndim < 1 or not (d.is_floating_point() or d.is_complex()):
            raise ValueError(
                f"Diagonal got a tensor of shape {tuple(d.shape)} and dtype {d.dtype}; "
                "expected (..., n) of a floating or complex dtype"
            )
        n = d.shape[-1]
        facts = {"symmetric": not d.is_complex(), "positive_definite": positive_definite}
        super().__init__((*d.shape, n), d.dtype, d.device, **facts)
        self.d = d

    def matvec(self, x: Tensor) -> Tensor:
        return self.d * x

    def rmatvec(self, y: Tensor) -> Tensor:
        return self.d.conj() * y

    def to_dense(self) -> Tensor:
        return torch.diag_embed(self.d)

    def _adjoint(self) -> LinearOperator:
        return Diagonal(self.d.conj())

    @property
    def T(self) -> LinearOperator:
        return self


class MatrixFree(LinearOperator):
    """A square operator known by its products only.

    Args:
        matvec: x -> A x, for x of shape (*batch_shape, n); row b of the result depends on row b of x alone.
        rmatvec: y -> Aᴴ y likewise. Without it Aᴴ y is the vector-Jacobian product of `matvec`, which must then be
            differentiable in x (by `torch.autograd.grad`, or by `torch.func.vjp` inside a function transform).
        n: number of unknowns.
        batch_shape: shape of the batch of operators.
        dtype, device: of the vectors; torch's defaults if left out.
        symmetric, positive_definite: promises about A; with either, `matvec` serves as `rmatvec`.
        leading: both callables take (*lead, *batch_shape, n).

    Raises:
        ValueError: a callable returned something else than a vector like its argument (at the product).
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        rmatvec: Callable[[Tensor], Tensor] | None = None,
        *,
        n: int,
        batch_shape: Sequence[int] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        symmetric: bool = False,
        positive_definite: bool = False,
        leading: bool = False,
    ) -> None:
        super().__init__(
            (*batch_shape, n, n),
            dtype or torch.get_default_dtype(),
            torch.device(device) if device is not None else torch.empty(0).device,
            symmetric=symmetric,
            positive_definite=positive_definite,
        )
        self.leading = leading
        self._matvec = matvec
        self._rmatvec = matvec if rmatvec is None and self.symmetric else rmatvec
        self._linearisation: Linearisation | None = None

    def matvec(self, x: Tensor) -> Tensor:
        return self._checked("matvec", self._matvec(x), x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self._pullback(y) if self._rmatvec is None else self._checked("rmatvec", self._rmatvec(y), y)

    def _pullback(self, y: Tensor) -> Tensor:
        linearisation = self._linearisation
        if linearisation is None or inside_functorch() or linearisation.value.shape != y.shape:
            linearisation = Linearisation(self.matvec, (torch.zeros_like(y),))
            # A is linear: one evaluation serves every product. A tensor must not outlive the transform that made it.
            self._linearisation = None if inside_functorch() else linearisation
        (x,) = linearisation.pull(y)
        if x is None:
            raise ValueError(
                "matvec is not differentiable (autograd sees no path from x to its result), so Aᴴ y cannot be "
                "derived from it; pass rmatvec, or symmetric=True if A is symmetric"
            )
        return x

    def _checked(self, name: str, y: Tensor, x: Tensor) -> Tensor:
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            got = f"a tensor of shape {tuple(y.shape)} and {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"{name} was given x of shape {tuple(x.shape)} and {x.dtype} and returned {got}; "
                f"expected the same shape and dtype as x (n = {self.shape[-1]}, batch shape {tuple(self.batch_shape)})"
            )
        return y
