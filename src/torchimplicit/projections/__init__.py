"""Projections on sets, argmin ½‖z − v‖² over z in the set, and proximal maps: batched over all leading dimensions, with exact
derivatives of every order.

A projection on a polyhedron is affine in v as long as it lies on one face: which one is found without a derivative, then a formula for
that face gives the value, and autograd all derivatives. Where v lies just between two faces there are several one-sided ones; the one
given is that of the face that holds less (a number that only touches its bound is free), never a mean of them. The others are curved:
cones, the entropic ones, and the cone of matrices, whose derivatives come from the conditions that define them.
"""

from torchimplicit.projections.balls import l1_ball, l2_ball
from torchimplicit.projections.cones import positive_semidefinite, second_order_cone
from torchimplicit.projections.isotonic import isotonic
from torchimplicit.projections.polyhedra import affine, box, box_and_hyperplane, simplex
from torchimplicit.projections.proximal import proximal_l1, proximal_l2, proximal_max
from torchimplicit.projections.transport import birkhoff, transport

__all__ = [
    "affine",
    "birkhoff",
    "box",
    "box_and_hyperplane",
    "isotonic",
    "l1_ball",
    "l2_ball",
    "positive_semidefinite",
    "proximal_l1",
    "proximal_l2",
    "proximal_max",
    "second_order_cone",
    "simplex",
    "transport",
]
