"""What the import of the package brings along."""

from __future__ import annotations

import subprocess
import sys


def modules_after(code: str) -> set[str]:
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], check=True, capture_output=True, text=True
    )
    return set(printed.stdout.split())


SOLVE = "import torch; x = torch.ones(3, requires_grad=True); ti.root(lambda z: z**3 + z - x, x).value.sum().backward()"


def test_neither_the_import_nor_a_solve_imports_dynamo_or_anything_but_torch() -> None:
    own = modules_after("import torch, torch.utils.checkpoint")  # which in an older torch imports sympy
    assert "torch._dynamo" not in own
    half = "ti.projections.positive_semidefinite(torch.ones(2, 2).half())"
    new = modules_after(f"import torchimplicit as ti; {SOLVE}; {half}") - own
    assert "torch._dynamo" not in new
    assert not {"numpy", "scipy", "sympy", "matplotlib"} & {name.partition(".")[0] for name in new}


def test_the_torch_of_the_environment_has_what_a_graph_needs() -> None:
    import torch

    from torchimplicit.private.dynamo import AVAILABLE

    assert AVAILABLE or torch.__version__ < "2.13", "a private name in private/dynamo.py has moved"


def test_the_version_is_that_of_the_package_that_is_installed() -> None:
    from importlib import metadata

    import torchimplicit as ti

    assert ti.__version__ == metadata.version("torchimplicit")
    assert not hasattr(ti, "__author__")
