"""The faces of cones on which a slack s and its multiplier y lie, and what is 0 there.

s ∈ K, y ∈ K* and sᵀy = 0 leave, near a pair that is strictly complementary, as many equations as a cone has numbers, which are smooth
(for the zero cone, half-lines and the two ends of all others even linear): in them the implicit function theorem holds to every order,
and no projection has to be differentiated. All functions take blocks (..., cones, size), of s and y in units in which both are about 1.

Sources: second-order cones and matrices: Alizadeh, Haeberly and Overton, Complementarity and nondegeneracy in semidefinite programming,
Math. Prog. 77 (1997), and Alizadeh and Goldfarb, Second-order cone programming, Math. Prog. 95 (2003), section 3; exponential cones:
Friberg, Projection onto the exponential cone, Optim. Meth. Softw. 38 (2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.programs.cones import Cones

WEAK = 1e-7  # where s + y is so near to the boundary of a cone, neither of the two lies inside of its face
TIE = 1e-9  # what lies so near to the boundary between two faces belongs to that with the smaller multiplier
LARGEST = 500.0  # exponent: more is not finite, and no slack is so large


def vanishing(kind: str, s: Tensor, y: Tensor) -> Tensor:
    """What is 0 on the face on which s and y lie, as many numbers as they have."""
    return _VANISHING[kind](s, y)


def _zero(s: Tensor, y: Tensor) -> Tensor:
    return s


def _nonnegative(s: Tensor, y: Tensor) -> Tensor:
    return torch.where(y.detach() - s.detach() > TIE, s, y)


def _second_order(s: Tensor, y: Tensor) -> Tensor:
    """y, s, or, where both are on the boundary: s₁ = ‖s̄‖, and ȳ s₁ + y₁ s̄ = 0."""
    v = (y - s).detach()
    length = torch.linalg.vector_norm(v[..., 1:], dim=-1, keepdim=True)
    free = length <= -v[..., :1] + TIE
    held = ~free & (length <= v[..., :1])
    between = ~(free | held)
    r = torch.linalg.vector_norm(torch.where(between, s[..., 1:], 1), dim=-1, keepdim=True)
    along = y[..., 1:] + y[..., :1] / r * s[..., 1:]
    return torch.where(free, y, torch.where(held, s, torch.cat([s[..., :1] - r, along], -1)))


def _semidefinite(s: Tensor, y: Tensor) -> Tensor:
    """SY + YS, whose vanishing is smooth where S + Y is positive definite."""
    S, Y = Cones.matrix(s), Cones.matrix(y)
    product = S @ Y
    return Cones.packed(product + product.mT)


def _exponential(s: Tensor, y: Tensor) -> Tensor:
    """The conditions of the face that are met best."""
    faces = _faces(s, y)
    best = torch.stack([face.detach().abs().amax(-1) for face in faces]).nan_to_num(nan=torch.inf).argmin(0)
    found = faces[0]
    for i, face in enumerate(faces[1:], 1):
        found = torch.where((best == i).unsqueeze(-1), face, found)
    return found


def _faces(s: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Of each face of the exponential cone what is 0: inside, at the apex, on the curved boundary, where y is its normal, on the two
    flat faces, s = (x, 0, z) and s = (x, 0, 0), and on the edge s = (0, 0, z) between the boundary and the first of them."""
    a, b, c = s.unbind(-1)
    u, v, w = y.unbind(-1)
    curved = (b.detach() > 0) & (a.detach() < LARGEST * b.detach())
    ratio = torch.where(curved, a, 0) / torch.where(curved, b, 1)
    e = ratio.exp()
    size = e.detach().clamp(min=1)
    boundary = torch.stack([(c - b * e) / size, (u + w * e) / size, (v + w * (1 - ratio) * e) / size], -1)
    boundary = torch.where(curved.unsqueeze(-1), boundary, torch.inf)
    flat = (torch.stack(three, -1) for three in ((b, u, w), (b, c, u), (a, b, w)))
    return y, s, boundary, *flat


_VANISHING = {
    "zero": _zero,
    "nonnegative": _nonnegative,
    "second_order": _second_order,
    "positive_semidefinite": _semidefinite,
    "exponential": _exponential,
}


def outside(kind: str, s: Tensor) -> Tensor:
    """By how much s lies outside of its cone, (..., cones); 0 inside."""
    if kind == "zero":
        return s.abs().squeeze(-1)
    if kind == "exponential":
        a, b, c = s.unbind(-1)
        inside = (b > 0) & (a < LARGEST * b)
        safe = torch.where(inside, b, 1)
        below = safe * (torch.where(inside, a, 0) / safe).exp() - c
        flat = torch.stack([a, b.abs(), -c], -1).amax(-1)
        return torch.where(inside, below.minimum(flat), flat).clamp(min=0)
    return (-_depth(kind, s)).clamp(min=0)


def outside_dual(kind: str, y: Tensor) -> Tensor:
    """The same for multipliers and the dual cone: all vectors for zero, and for the exponential cone {(u, v, w): (u − v, −u, w) ∈ K};
    the others are their own."""
    if kind == "zero":
        return torch.zeros_like(y).squeeze(-1)
    return outside(kind, _mapped(y) if kind == "exponential" else y)


def _mapped(y: Tensor) -> Tensor:
    u, v, w = y.unbind(-1)
    return torch.stack([u - v, -u, w], -1)


def _depth(kind: str, s: Tensor) -> Tensor:
    """How deep s lies inside of its cone, (..., cones); negative outside."""
    if kind == "nonnegative":
        return s.squeeze(-1)
    if kind == "second_order":
        return s[..., 0] - torch.linalg.vector_norm(s[..., 1:], dim=-1)
    S = Cones.matrix(s)
    finite = S.isfinite().flatten(-2).all(-1)
    smallest = torch.linalg.eigvalsh(torch.where(finite[..., None, None], S, 0))[..., 0]
    return torch.where(finite, smallest, torch.nan)


def weak(kind: str, s: Tensor, y: Tensor) -> Tensor:
    """Whether s and y, which are complementary, lie on the boundary between two faces, (..., cones): there the derivative is
    one-sided."""
    if kind == "zero":
        return torch.zeros_like(s[..., 0], dtype=torch.bool)
    if kind != "exponential":  # the cone is its own dual
        return _depth(kind, s + y) <= WEAK
    a, b, c = s.unbind(-1)
    _, v, w = y.unbind(-1)
    best = torch.stack([face.abs().amax(-1) for face in _faces(s, y)]).argmin(0)
    flat = (-a).minimum(v)
    margins = (_inside(s), _inside(_mapped(y)), b.minimum(w), flat.minimum(c), flat.minimum(w), torch.zeros_like(a))
    return torch.stack(margins).gather(0, best.unsqueeze(0)).squeeze(0) <= WEAK


def _inside(s: Tensor) -> Tensor:
    """How deep s lies inside of the exponential cone, about."""
    a, b, c = s.unbind(-1)
    safe = torch.where(b > 0, b, 1)
    return b.minimum(c - safe * (a / safe).clamp(max=LARGEST).exp())
