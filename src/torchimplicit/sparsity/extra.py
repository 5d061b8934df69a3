"""SciPy, which finds orders, factorises and multiplies sparse matrices; an extra: ``pip install torchimplicit[scipy]``."""

from __future__ import annotations

from importlib.util import find_spec

MISSING = "sparse Jacobians need SciPy, which colours and factorises them: pip install torchimplicit[scipy]"


def available() -> bool:
    """Whether SciPy can be imported."""
    return find_spec("scipy") is not None
