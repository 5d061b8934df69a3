"""What a benchmark is made of: a workload (arrays, reference) and the competitors that were registered on it.

A competitor is one function that returns `solve`, the forward pass. How its value and its gradient are then taken is
the same for all competitors of a framework and is written here once, so that nobody can be measured in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Reference(NamedTuple):
    """The solution and the gradient of sum(c * z) in each parameter, in float64."""

    value: np.ndarray
    gradients: dict[str, np.ndarray]


class Run(NamedTuple):
    """A competitor, ready to run. Each call does the whole work again and returns when it is done."""

    value: Callable[[], Any]
    value_and_gradient: Callable[[], tuple[Any, dict[str, Any]]] | None  # None: it has no gradient
    record: Callable[[], Any] | None  # the forward pass alone, with what its backward needs (torch only)
    inputs: tuple[Any, ...]


@dataclass(frozen=True)
class Competitor:
    name: str
    framework: str  # "torch" or "jax"
    build: Callable[..., Any]
    packages: tuple[str, ...]  # whose versions are reported
    against: str | None  # the competitor that its time is divided by; None: the workload's first
    note: str
    forward_only: bool  # it finds the value and offers no gradient

    def prepare(self, workload: Workload, arrays: Arrays) -> Run:
        """Import what it needs and put the arrays in its framework. Raises ImportError where it is absent."""
        run = _torch_run if self.framework == "torch" else _jax_run
        made = run(self.build, workload.parameters, arrays)
        return made._replace(value_and_gradient=None, record=None) if self.forward_only else made


@dataclass
class Workload:
    """`arrays(rng)` makes the inputs, among them the cotangent "c"; gradients are taken in `parameters`.

    Where `memory_only` is set nothing is timed, and the ratios are those of the peaks. Where `approximate` is, gradients are not
    expected to be exact, and the table has their directions too.
    """

    name: str
    title: str
    description: str
    parameters: tuple[str, ...]
    arrays: Callable[[np.random.Generator], dict[str, np.ndarray]]
    reference: Callable[[Arrays], Reference]
    memory_only: bool = False
    approximate: bool = False
    competitors: dict[str, Competitor] = field(default_factory=dict)

    def inputs(self) -> dict[str, np.ndarray]:
        return self.arrays(np.random.default_rng(0))

    def torch(self, name: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register `build(p) -> solve`, where p holds the arrays as tensors and `solve()` returns z."""
        return self._register(name, "torch", **options)

    def jax(self, name: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register `build() -> solve`, where `solve(p)` returns z and can be compiled; p holds the arrays."""
        return self._register(name, "jax", **options)

    def _register(
        self,
        name: str,
        framework: str,
        packages: tuple[str, ...] = (),
        against: str | None = None,
        note: str = "",
        forward_only: bool = False,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
            if name in self.competitors:
                raise ValueError(f"{self.name}: two competitors are called {name!r}")
            versions = (framework, *packages)
            self.competitors[name] = Competitor(name, framework, build, versions, against, note, forward_only)
            return build

        return decorate


@dataclass(frozen=True)
class Group:
    """Workloads with competitors of the same names, in one more table; the first row's time is also divided by that ``against``."""

    name: str
    title: str
    description: str
    workloads: tuple[str, ...]
    against: str


def errors(value: Any, gradients: Mapping[str, Any] | None, reference: Reference) -> tuple[float, float | None]:
    """Relative errors in the Euclidean norm: of the value, and the largest over the parameters' gradients."""
    value_error = _relative_error(value, reference.value)
    if gradients is None:
        return value_error, None
    gradient_errors = [_relative_error(gradients[name], wanted) for name, wanted in reference.gradients.items()]
    return value_error, max(gradient_errors)


def cosine(gradients: Mapping[str, Any] | None, reference: Reference) -> float | None:
    """Of the angle between the gradients and the true ones, the smallest over the parameters."""
    if gradients is None:
        return None
    found = []
    for name, wanted in reference.gradients.items():
        g = np.asarray(gradients[name], dtype=np.float64)
        found.append(float((g * wanted).sum() / (np.linalg.norm(g) * np.linalg.norm(wanted))))
    return min(found)


def _relative_error(found: Any, wanted: np.ndarray) -> float:
    if hasattr(found, "detach"):
        found = found.detach()
    difference = np.asarray(found, dtype=np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted))


def _torch_run(build: Callable[..., Any], parameters: tuple[str, ...], arrays: Arrays) -> Run:
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for name in parameters:
        tensors[name].requires_grad_()
    leaves = tuple(tensors[name] for name in parameters)
    solve = build(tensors)

    def value() -> Any:
        with torch.no_grad():
            return solve()

    def value_and_gradient() -> tuple[Any, dict[str, Any]]:
        z = solve()
        return z, dict(zip(parameters, torch.autograd.grad(z, leaves, tensors["c"])))

    return Run(value, value_and_gradient, solve, tuple(tensors.values()))


def _jax_run(build: Callable[..., Any], parameters: tuple[str, ...], arrays: Arrays) -> Run:
    import jax

    jax.config.update("jax_enable_x64", arrays["c"].dtype == np.float64)
    solve = build()
    inputs = {name: jax.numpy.asarray(array) for name, array in arrays.items()}

    @jax.jit
    def value(inputs: dict[str, Any]) -> Any:
        return solve(inputs)

    @jax.jit
    def value_and_gradient(inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        chosen = {name: inputs[name] for name in parameters}
        z, pullback = jax.vjp(lambda chosen: solve({**inputs, **chosen}), chosen)
        (gradients,) = pullback(inputs["c"])
        return z, gradients

    return Run(
        lambda: jax.block_until_ready(value(inputs)),
        lambda: jax.block_until_ready(value_and_gradient(inputs)),
        None,
        tuple(inputs.values()),
    )
