"""Which cases are among the fast tests."""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked ``sampled(k)`` every k-th case is fast, the first among them; the others are slow."""
    met: Counter[str] = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is None:
            continue
        name = item.nodeid.split("[")[0]
        if met[name] % sampled.args[0]:
            item.add_marker(pytest.mark.slow)
        met[name] += 1
