"""An optimiser of ``torch.optim`` as the forward solver of a minimum."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.solvers.descent import check_minimised
from torchimplicit.solvers.equations import Equations
from torchimplicit.solvers.method import Method

# What one number of z becomes depends, in these, on its own gradients only, so that no row of a batch changes another.
ELEMENTWISE = ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")


class TorchOptimizer(Method):
    """Every step is one step of ``optimizer([z], **options)``, made anew for every solve.

    An optimiser that mixes the numbers of z (``torch.optim.LBFGS``, say) takes one system at a time: it raises ValueError for a batch
    of several. Steps cannot be unrolled: the gradient is that of the minimum (``Implicit``, ``OneStep``, ``Phantom``).

    Example::

        z, info = ti.minimize(phi, z0, solver=ti.interop.TorchOptimizer(torch.optim.Adam, lr=0.1))
    """

    max_steps: ClassVar[int] = 10000
    patience: ClassVar[int] = 1000

    def __init__(self, optimizer: type[torch.optim.Optimizer], **options: Any) -> None:
        if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
            raise TypeError(
                f"TorchOptimizer needs a class of torch.optim, such as torch.optim.Adam, and its options; got {optimizer!r}."
            )
        self.optimizer = optimizer
        self.options = options

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"TorchOptimizer(torch.optim.{self.optimizer.__name__}{options})"

    def init(self, equations: Equations, z: Tensor) -> tuple[Tensor, torch.optim.Optimizer]:
        name = self.optimizer.__name__
        check_minimised(equations, name)
        if torch.is_grad_enabled():
            raise TypeError(f"the steps of torch.optim.{name} cannot be unrolled. Use Implicit() (the default).")
        if len(z) > 1 and not (name in ELEMENTWISE and self.optimizer.__module__.startswith("torch.optim")):
            raise ValueError(
                f"{name} may mix the rows of a batch, here of {len(z)} systems. Solve them one by one, or use an optimiser that "
                f"works on each number by itself, such as Adam."
            )
        return equations.residual(z), self.optimizer([torch.nn.Parameter(z.clone())], **self.options)

    def step(
        self, equations: Equations, z: Tensor, r: Tensor, state: torch.optim.Optimizer
    ) -> tuple[Tensor, Tensor, torch.optim.Optimizer]:
        (unknown,) = state.param_groups[0]["params"]
        unknown.data = z.clone()

        def closure() -> float:
            with torch.no_grad():
                value, unknown.grad = equations.objective_and_residual(unknown.detach())
            return float(value.sum())

        if self.optimizer.__name__ in ELEMENTWISE:
            unknown.grad = r
            state.step()
        else:
            state.step(closure)
        z = unknown.detach().clone()
        return z, equations.residual(z), state
