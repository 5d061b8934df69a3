"""Linear operators: what a linear solver may ask of a matrix, whether or not its entries exist."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import no_more_than
from torchimplicit.graph.loop import Operands
from torchimplicit.linear.direct import Conjugated, Direct, Divided, Flipped, InTurn, Multiplied, never
from torchimplicit.linear.structure import Structure
from torchimplicit.linear.vectors import lead_shape
from torchimplicit.private import pytree

CONCURRENT_ENTRIES = 2**20  # vmap may copy the matrix behind a product for each vector of a sweep: bounds those copies


class LinearOperator(ABC):
    """A batch of linear maps, one (m, n) matrix A for each index of `batch_shape`.

    A subclass implements `matvec` and `rmatvec` for vectors of exactly the operator's batch shape. Solvers call
    `apply`, which also takes several vectors per matrix. `A + B`, `A - B`, `A @ B`, `c * A`, `A.H`, `A.T` and `A.inverse`
    are operators again: what is known of their structure follows from that of the parts, and so does their direct solve.

    Attributes:
        shape: (*batch_shape, m, n).
        batch_shape: the shape before the last two dimensions.
        dtype, device: of the matrix and of the vectors it is applied to.
        structure: what is promised of the entries (:class:`torchimplicit.linear.structure.Structure`), never checked.
        explicit: what it is made of is at hand, so that a direct solve takes no products with it.
        leading: `matvec` and `rmatvec` take further leading dimensions, (*lead, *batch_shape, n), by themselves.
        parts, options: names of the constructor's arguments that are tensors or operators (or None), and of the others;
            they are attributes too. With parts an operator is a pytree, whose leaves are its tensors.
    """

    explicit = False
    leading = False
    parts: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()
    _original: LinearOperator | None = None  # set on an adjoint, so that A.H.H is A

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.parts:
            pytree.register_pytree_node(cls, _taken_apart, partial(_put_together, cls))

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        lower: float = math.inf,
        upper: float = math.inf,
        symmetric: bool = False,
        positive_definite: bool = False,
    ) -> None:
        self.shape = torch.Size(shape)
        self.batch_shape = self.shape[:-2]
        self.dtype = dtype
        self.device = device
        self.structure = Structure(lower, upper, symmetric, positive_definite).completed()

    @property
    def symmetric(self) -> bool:
        """A is its own conjugate transpose (Hermitian, for complex dtypes): a promise."""
        return self.structure.symmetric

    @property
    def positive_definite(self) -> bool:
        """A is Hermitian positive definite: a promise, which implies `symmetric`."""
        return self.structure.positive_definite

    def direct(self) -> Direct | None:
        """The state of the direct solve that this kind of matrix has; None: it has none of its own."""
        return None

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
        each = x[0].numel() * size
        at_once = None if no_more_than(len(x) * each, CONCURRENT_ENTRIES) else CONCURRENT_ENTRIES // each
        if at_once is None or at_once > 1:
            with suppress(Exception):  # if the product itself is at fault, it fails again below
                return torch.vmap(product, chunk_size=at_once)(x)
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
    def inverse(self) -> LinearOperator:
        """A⁻¹, whose products are solves with the state of A."""
        return Inverse(self)

    @property
    def operands(self) -> Operands:
        """What its products use, for the body of a loop in a graph."""
        return Operands(())

    def __add__(self, other: object) -> LinearOperator:
        return Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: object) -> LinearOperator:
        return Sum(self, -other) if isinstance(other, LinearOperator) else NotImplemented

    def __neg__(self) -> LinearOperator:
        return -1 * self

    def __mul__(self, c: object) -> LinearOperator:
        """c A, for a number or a tensor of numbers, one for each matrix of the batch."""
        if isinstance(c, (int, float)):
            return Scaled(torch.full((), float(c), dtype=self.dtype, device=self.device), self, positive=c > 0)
        return Scaled(c, self) if isinstance(c, Tensor) else NotImplemented

    __rmul__ = __mul__

    def __matmul__(self, other: object) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return Product(self, other, symmetric=self._original is other or other._original is self)

    def _adjoint(self) -> LinearOperator:
        return ConjugateTranspose(self)

    def __repr__(self) -> str:
        facts = "".join(f", {name}" for name in self.structure.names)
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype}{facts})"


def _taken_apart(operator: LinearOperator) -> tuple[list[Any], tuple[Any, ...]]:
    parts = {name: getattr(operator, name) for name in type(operator).parts}
    present = {name: part for name, part in parts.items() if part is not None}
    options = tuple(getattr(operator, name) for name in type(operator).options)
    return list(present.values()), (tuple(present), options)


def _put_together(cls: type[LinearOperator], parts: Sequence[Any], known: tuple[Any, ...]) -> LinearOperator:
    present, options = known
    named = {**dict(zip(present, parts)), **dict(zip(cls.options, options))}
    if all(isinstance(leaf, (Tensor, LinearOperator)) for leaf in pytree.tree_leaves(list(parts))):
        return cls(**named)
    shell = object.__new__(cls)  # what stands in the leaves' places while a pytree is mapped
    shell.__dict__.update(dict.fromkeys(cls.parts) | named)
    return shell


class View(LinearOperator):
    """Aᴴ or Aᵀ as a view of A."""

    parts = ("operator",)
    leading = True

    def __init__(self, operator: LinearOperator) -> None:
        *batch, m, n = operator.shape
        facts = operator.structure.adjoint().as_keywords()
        super().__init__((*batch, n, m), operator.dtype, operator.device, **facts)
        self.operator = operator
        self.explicit = operator.explicit


class ConjugateTranspose(View):
    """Aᴴ: the two products change places."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator)
        self._original = operator

    def matvec(self, x: Tensor) -> Tensor:
        return self.operator.apply(x, adjoint=True)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self.operator.apply(y)

    def to_dense(self) -> Tensor:
        return self.operator.to_dense().mH

    def direct(self) -> Direct | None:
        state = self.operator.direct()
        return None if state is None else Flipped(state)


class Transpose(View):
    """Aᵀ of a complex A: Aᵀ x is the conjugate of Aᴴ x̄."""

    def matvec(self, x: Tensor) -> Tensor:
        return self.operator.apply(x.conj(), adjoint=True).conj()

    def rmatvec(self, y: Tensor) -> Tensor:
        return self.operator.apply(y.conj()).conj()

    def to_dense(self) -> Tensor:
        return self.operator.to_dense().mT

    def direct(self) -> Direct | None:
        state = self.operator.direct()
        return None if state is None else Conjugated(state)

    @property
    def T(self) -> LinearOperator:
        return self.operator


class Sum(LinearOperator):
    """A + B. The batch shape of one may be the end of that of the other."""

    parts = ("A", "B")
    leading = True

    def __init__(self, A: LinearOperator, B: LinearOperator) -> None:
        if A.shape[-2:] != B.shape[-2:]:
            raise ValueError(f"A + B: the shapes {tuple(A.shape)} and {tuple(B.shape)} do not fit")
        shape = (*common_batch("A + B", A, B), *A.shape[-2:])
        super().__init__(shape, A.dtype, A.device, **A.structure.plus(B.structure).as_keywords())
        self.A, self.B = A, B
        self.explicit = A.explicit and B.explicit

    def matvec(self, x: Tensor) -> Tensor:
        return self.A.apply(x) + self.B.apply(x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self.A.apply(y, adjoint=True) + self.B.apply(y, adjoint=True)

    def to_dense(self) -> Tensor:
        return self.A.to_dense() + self.B.to_dense()


class Product(LinearOperator):
    """A B: two products, and two solves where A and B are square and have them. The batch shapes are as for a sum.

    symmetric : a promise, such as for B = Aᴴ.
    """

    parts = ("A", "B")
    options = ("symmetric",)
    leading = True

    def __init__(self, A: LinearOperator, B: LinearOperator, symmetric: bool = False) -> None:
        if A.shape[-1] != B.shape[-2]:
            raise ValueError(f"A @ B: the shapes {tuple(A.shape)} and {tuple(B.shape)} do not fit")
        shape = (*common_batch("A @ B", A, B), A.shape[-2], B.shape[-1])
        facts = A.structure.times(B.structure)._replace(symmetric=symmetric)
        super().__init__(shape, A.dtype, A.device, **facts.as_keywords())
        self.A, self.B = A, B
        self.explicit = A.explicit and B.explicit

    def matvec(self, x: Tensor) -> Tensor:
        return self.A.apply(self.B.apply(x))

    def rmatvec(self, y: Tensor) -> Tensor:
        return self.B.apply(self.A.apply(y, adjoint=True), adjoint=True)

    def to_dense(self) -> Tensor:
        return self.A.to_dense() @ self.B.to_dense()

    def direct(self) -> Direct | None:
        states = [part.direct() if part.shape[-1] == part.shape[-2] else None for part in (self.A, self.B)]
        known = [state for state in states if state is not None]
        return InTurn(known) if len(known) == len(states) else None


class Scaled(LinearOperator):
    """c A for numbers c, a tensor with the operator's batch shape or without dimensions. ``positive``: c is real and > 0."""

    parts = ("c", "A")
    options = ("positive",)
    leading = True

    def __init__(self, c: Tensor, A: LinearOperator, positive: bool = False) -> None:
        if c.shape not in ((), A.batch_shape):
            raise ValueError(
                f"c A: c has shape {tuple(c.shape)}; expected () or A's batch shape {tuple(A.batch_shape)}"
            )
        facts = A.structure.scaled(real=not c.is_complex(), positive=positive)
        super().__init__(A.shape, torch.promote_types(c.dtype, A.dtype), A.device, **facts.as_keywords())
        if self.dtype != A.dtype:
            raise TypeError(f"c A: c has dtype {c.dtype} and A has {A.dtype}; convert A")
        self.c, self.A, self.positive = c, A, positive
        self.explicit = A.explicit

    def matvec(self, x: Tensor) -> Tensor:
        return self.c.unsqueeze(-1) * self.A.apply(x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self.c.conj().unsqueeze(-1) * self.A.apply(y, adjoint=True)

    def to_dense(self) -> Tensor:
        return self.c[..., None, None] * self.A.to_dense()

    def direct(self) -> Direct | None:
        state = self.A.direct()
        return None if state is None else Divided(state, self.c)


class Inverse(LinearOperator):
    """A⁻¹: a product with it is a solve by the direct state of A, which is made when the first is asked for.

    As a preconditioner, `A.inverse` stands for what A⁻¹ approximates: M.inverse for a product M ≈ A⁻¹ that is at hand.
    """

    parts = ("A",)
    leading = True

    def __init__(self, A: LinearOperator) -> None:
        m, n = A.shape[-2:]
        if m != n:
            raise ValueError(f"A.inverse: A must be square; it has shape {tuple(A.shape)}")
        super().__init__(A.shape, A.dtype, A.device, **A.structure.inverse().as_keywords())
        self.A = A

    @cached_property
    def _state(self) -> Direct:
        state = self.A.direct()
        if state is None:
            raise TypeError(f"A.inverse: {self.A!r} has no direct solve. Solve with it by linear_solve instead.")
        return state

    def matvec(self, x: Tensor) -> Tensor:
        return self._state.solve(x)

    def rmatvec(self, y: Tensor) -> Tensor:
        return self._state.solve(y, adjoint=True)

    @property
    def inverse(self) -> LinearOperator:
        return self.A

    def direct(self) -> Direct | None:
        return Multiplied(self.A.apply, never(self.batch_shape, self.device))


def common_batch(what: str, *operators: LinearOperator) -> torch.Size:
    """The batch shape of what is made of several operators, that of the one with the most dimensions: those of the others are its end.

    Raises TypeError or ValueError where one is no operator, that is not so, or dtypes or devices differ.
    """
    if not all(isinstance(operator, LinearOperator) for operator in operators):
        raise TypeError(f"{what} is made of operators; of a tensor of entries A take linear.Dense(A)")
    first = operators[0]
    longest = max((operator.batch_shape for operator in operators), key=len)
    for operator in operators:
        if (operator.dtype, operator.device) != (first.dtype, first.device):
            raise TypeError(
                f"{what}: one is {first.dtype} on {first.device}, another {operator.dtype} on {operator.device}; convert one"
            )
        if longest[len(longest) - len(operator.batch_shape) :] != operator.batch_shape:
            raise ValueError(
                f"{what}: the batch shapes {' and '.join(str(tuple(each.batch_shape)) for each in operators)} do not fit; each has "
                "to be the end of the longest"
            )
    return longest
