"""Programs are solved in units in which their numbers are about 1."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.programs.random_programs import D
from torchimplicit.programs.quadratic import Data, scaled


def test_a_program_is_scaled_as_if_it_were_alone() -> None:
    """One with numbers of very different sizes needs more sweeps than its neighbour."""
    Q, G = torch.eye(3, dtype=D), torch.tensor([[1.0, 2, 3], [3, 1, -2]], dtype=D)
    uneven = torch.tensor([1e-4, 1, 1e5], dtype=D)

    def units(*scales: Tensor) -> Tensor:
        d = torch.stack(scales).unsqueeze(-1)
        C, h = G * d.mT, torch.ones(len(d), 2, dtype=D)
        data = Data(d * Q * d.mT, d.squeeze(-1), C, h, C[:, :0], h[:, :0], None, None)
        programs, found = scaled(data)
        largest = torch.cat([programs.Q, programs.rows.C], -2).abs().amax(-2)
        assert (largest.amax(-1) / largest.amin(-1) < 100).all()  # 1e9 and 1e18 as they were
        return found.z

    one = torch.ones(3, dtype=D)
    assert torch.equal(units(one, uneven)[:1], units(one))
    assert torch.equal(units(one, uneven)[1:], units(uneven))
