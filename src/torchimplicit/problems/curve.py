"""The curve g(z, s) = 0: its points and tangents, and one step along it, with what tells whether that stays on one branch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.layout import Layout, same_as_z
from torchimplicit.linear import LU, Auto
from torchimplicit.linear.auto import AutoState
from torchimplicit.linear.factors import Factors
from torchimplicit.linear.jacobian import Jacobian
from torchimplicit.linear.vectors import unpatterned
from torchimplicit.solvers.auto import FORMED_LIMIT

CORRECTIONS = 8  # Newton steps after which a step was too long
# What a step of good length has:
ANGLE = 0.25  # between the tangents at its ends
DISTANCE = 0.05  # from the point predicted to that found, as a part of the step
CONTRACTION = 0.05  # of the second correction beside the first: how far from linear the equations are between the two
BEND = ANGLE / 16  # between the chord and the mean tangent: none on a circle, so that more means a jump sideways
SKEW = 0.05  # between the change of s and the mean of its slopes at both ends, as a part of the larger one


class Point(NamedTuple):
    """A point y = (z, (s − s0)/(s1 − s0)) of the curve, the unit tangent there, and its orientation.

    sign : of det A, where A is ∂g/∂y above a row along the tangent. It is the same all along a branch, round its folds too. A step that
        goes straight on to a point with the other sign has passed one where branches cross, or has changed to another that comes near.
    witness : where no determinant is at hand, the two vectors by which the next sign is found (:func:`_oriented`).
    """

    y: Tensor
    tangent: Tensor
    sign: float
    witness: tuple[Tensor, Tensor] | None = None


class Corrected(NamedTuple):
    """A point of the curve in a plane and the tangent there, the first correction and how much of it the second was, and A⁻¹."""

    y: Tensor
    tangent: Tensor
    distance: float
    contraction: float
    inverse: Factors | AutoState


@dataclass(frozen=True)
class Curve:
    """g(z, s) = 0 as a curve of points y = (z, (s − s0)/(s1 − s0)) in n + 1 dimensions.

    Lengths and angles are those of (z, s) without units: each leaf of z counts by its root mean square as a part of its
    entry of ``units``, and s as a part of the way from s0 to s1.
    """

    g: Callable[..., Any]
    args: tuple[Any, ...]
    layout: Layout
    s0: Tensor
    s1: Tensor
    units: tuple[float, ...]

    def s(self, y: Tensor) -> Tensor:
        return self.s0 + y[-1] * (self.s1 - self.s0)

    def z(self, y: Tensor) -> Any:
        return self.layout.unflatten(y[:-1].unsqueeze(0))

    def with_units(self, v: Tensor) -> Curve:
        """The same curve with units not smaller than the leaves of a vector."""
        leaves = v[:-1].split(self.layout.widths)
        sizes = (float(torch.linalg.vector_norm(leaf)) / max(1, len(leaf)) ** 0.5 for leaf in leaves)
        return replace(self, units=tuple(max(size, unit) for size, unit in zip(sizes, self.units, strict=True)))

    @property
    def weights(self) -> Tensor:
        like = self.s0
        parts = [
            like.new_full((n,), 1 / (unit * max(1, n) ** 0.5))
            for n, unit in zip(self.layout.widths, self.units, strict=True)
        ]
        return torch.cat([*parts, like.new_ones(1)])

    def length(self, v: Tensor) -> float:
        return float(torch.linalg.vector_norm(self.weights * v))

    def distance(self, y: Tensor, z: Any) -> float:
        """Of a point from the one with the same s and another z."""
        return self.length(torch.cat([self.layout.flatten(z)[0], y[-1:]]) - y)

    def unit(self, v: Tensor) -> Tensor:
        return v / self.length(v)

    def angle(self, a: Tensor, b: Tensor) -> float:
        """Between two vectors, exact for small ones too."""
        a, b = self.unit(a), self.unit(b)
        return 2 * math.atan2(self.length(a - b), self.length(a + b))

    def corrected(self, start: Tensor, normal: Tensor, near: float) -> Corrected | None:
        """The point of the curve in the plane through a start, by Newton's method; None where that does not contract.

        Its error is below √eps of ``near``, the length in question, and of 1; or what rounding leaves of it, if that is little.
        """
        row = self.weights.square() * normal
        equations = self._in_plane(row / torch.linalg.vector_norm(row), start)
        last_one = torch.zeros_like(start)
        last_one[-1] = 1
        enough = 0.1 * torch.finfo(start.dtype).eps ** 0.5 * min(1.0, near)
        y, sizes = start, list[float]()
        while len(sizes) < CORRECTIONS:
            jacobian = Jacobian(lambda y: equations(y[0]).unsqueeze(0), y.unsqueeze(0))
            inverse = LU().factorize(jacobian) if len(y) <= FORMED_LIMIT else Auto().factorize(jacobian)
            correction, tangent = inverse.solve(jacobian.value)[0], inverse.solve(last_one.unsqueeze(0))[0]
            size = self.length(correction)
            falls = not sizes or size < sizes[-1]
            if not (math.isfinite(self.length(tangent)) and (falls or size <= 1e-3 * near)):
                return None
            if falls:
                y = y - correction
            factor = size / sizes[-1] if sizes and sizes[-1] else 1.0  # by which the next correction will be smaller
            sizes.append(size)
            if not falls or size * factor <= enough:
                # Of a correction that is next to nothing the second is rounding, and says nothing of the equations.
                little = max(0.01 * DISTANCE * near, 32 * torch.finfo(y.dtype).eps * self.length(y))
                contraction = sizes[1] / max(sizes[0], little) if len(sizes) > 1 else 0.0
                return Corrected(y, self.unit(tangent), sizes[0], contraction, inverse)
        return None

    def _in_plane(self, normal: Tensor, at: Tensor) -> Callable[[Tensor], Tensor]:
        """n + 1 equations for the point of the curve that is in a plane."""
        output = same_as_z(self.layout, "continuation: the function")

        def equations(y: Tensor) -> Tensor:
            z = self.layout.argument(y[:-1].unsqueeze(0))
            return torch.cat([output(self.g(z, self.s(y), *self.args))[0], (normal @ (y - at)).reshape(1)])

        return equations

    def slope(self, y: Tensor) -> Tensor | None:
        """dy along the curve for the whole way from s0 to s1, in first order; None where s turns back or another branch crosses."""
        forward = torch.zeros_like(y)
        forward[-1] = 1
        found = self.corrected(y, forward, 1.0)
        return None if found is None else found.tangent / found.tangent[-1]

    def first(self, y: Tensor, tangent: Tensor) -> Point | None:
        """The first point, given a tangent there."""
        found = self.corrected(y, tangent, 1.0)
        return None if found is None else Point(found.y, found.tangent, *_oriented(found.inverse, found.y, None))

    def step(self, a: Point, h: float, predicted: Tensor) -> tuple[Point, float]:
        """The next point, from where it is predicted at a distance h, and its strain: 1 where the step had a good length, and in
        first order 2 where it was twice as long; inf where no point was found.

        Source: Allgower and Georg, Introduction to Numerical Continuation Methods (2003), section 6.1; the contraction as
        in Deuflhard, Newton Methods for Nonlinear Problems (2011), section 5.1.
        """
        found = self.corrected(predicted, a.tangent, h)
        if found is None:
            return a, math.inf
        rise, before, after = (float(v[-1]) for v in (self.unit(found.y - a.y), a.tangent, found.tangent))
        skew = abs(rise - (before + after) / 2) / max(abs(before), abs(after), torch.finfo(a.y.dtype).eps ** 0.5)
        strain = max(
            math.sqrt(skew / SKEW),
            self.angle(a.tangent, found.tangent) / ANGLE,
            found.distance / (DISTANCE * h),
            math.sqrt(found.contraction / CONTRACTION),
            math.sqrt(self.angle(found.y - a.y, a.tangent + found.tangent) / BEND),
        )
        return Point(found.y, found.tangent, *_oriented(found.inverse, found.y, a)), strain

    def between(self, a: Point, b: Point, part: float) -> Corrected | None:
        """The point of the curve near the cubic through two points, that is part of the way from one to the other."""
        chord = b.y - a.y
        h, rest = self.length(chord), 1 - part
        start = a.y + part**2 * (3 - 2 * part) * chord + h * part * rest * (rest * a.tangent - part * b.tangent)
        return self.corrected(start, chord / h, h)


def _oriented(
    inverse: Factors | AutoState, y: Tensor, last: Point | None
) -> tuple[float, tuple[Tensor, Tensor] | None]:
    """The sign of det A, and the witness of the next one.

    Where A has no entries, its determinant is not at hand. Where it changes its sign, an eigenvalue of ∂g/∂y within the plane goes
    through zero, and the solution x of A x = w turns round, if w is the value that ∂g/∂y enlarges to least: w and x at the last point
    are the witness. w follows by one step of the power method a point. A step in which x turns for another reason is too long as
    well; where two eigenvalues go through zero in one step, neither this nor the determinant tells.
    Source: Govaerts, Numerical Methods for Bifurcations of Dynamical Equilibria (2000), chapter 3 (bordered matrices).
    """
    if isinstance(inverse, Factors):
        matrix, pivots = inverse.tensors[0][0], inverse.tensors[1][0]
        swaps = int((pivots != torch.arange(1, len(matrix) + 1, device=pivots.device)).sum()) if len(matrix) > 1 else 0
        return float(matrix.diagonal().sign().prod()) * (-1) ** swaps, None
    value = torch.ones_like(y).unsqueeze(0)
    value[:, -1] = 0  # of the plane
    sign = 1.0
    if last is None or last.witness is None:
        w = value * unpatterned(value)
        x = inverse.solve(w)
    else:
        w, before = last.witness
        x = inverse.solve(w)
        sign = math.copysign(last.sign, last.sign * float((x * before).sum()))
    w = value * inverse.solve(x, adjoint=True)
    w = w / torch.linalg.vector_norm(w)
    return sign, (w, inverse.solve(w))
