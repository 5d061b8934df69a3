"""The examples of the README run as they are printed, and give what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_give_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    torch.manual_seed(0)
    root, layer, black_box = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}

    exec(root, names)
    z, a = names["z"].detach(), names["a"]
    torch.testing.assert_close(z**3 + z, a.detach())
    torch.testing.assert_close(a.grad, 1 / (3 * z**2 + 1))

    exec(layer, names)
    assert names["layer"].last_info.converged.all()
    assert names["layer"].last_info.adjoint.converged.all()
    assert all(parameter.grad.abs().max() > 0 for parameter in names["layer"].parameters())
    assert capsys.readouterr().out.count("tensor") == 2

    exec(black_box, names)
    a = names["a"]
    z = names["cube"](a.detach())
    torch.testing.assert_close(z**3 + z, a.detach())
    torch.testing.assert_close(a.grad, 1 / (3 * z**2 + 1))
