"""Modules over the functions: layers whose output is defined by what a module computes."""

from torchimplicit.nn.layers import ArgMin, FixedPoint, Root

__all__ = ["ArgMin", "FixedPoint", "Root"]
