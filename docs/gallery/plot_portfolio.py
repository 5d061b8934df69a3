r"""
Forecasts for a decision: a portfolio
=====================================

A forecast of returns is made to be acted upon: an investor holds :math:`w` that maximises
:math:`\mu^\top w - \tfrac{\gamma}{2} w^\top \Sigma w` with :math:`w \ge 0` and :math:`\sum w = 1`, a quadratic program. Of two
forecasts with equal errors one can be worth more. With the program as a layer a model is trained for what its decisions bring
(Donti et al., Task-based end-to-end model learning, 2017).
"""

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
assets, features, risk = 8, 4, 2.0
factor = torch.randn(assets, 3)
covariance = 0.1 * factor @ factor.T + 0.05 * torch.eye(assets)


def hold(forecast):
    """The portfolio of each forecast, (..., assets) → (..., assets)."""
    total, one = torch.ones(1, assets), torch.ones(1)
    return ti.quadratic_program(risk * covariance, -forecast, A=total, b=one, lower=torch.zeros(assets))


def worth(w, returns):
    return (returns * w).sum(-1) - risk / 2 * torch.einsum("...i,ij,...j", w, covariance, w)


# %%
# What holds a portfolio
# ----------------------
# Where nothing is at its bound the program has a closed form, by the multiplier of the budget alone.

mild = 0.001 * torch.randn(5, assets) + risk * covariance @ torch.full((assets,), 1 / assets)
w, info = hold(mild)
inverse = torch.linalg.inv(risk * covariance)
price = (inverse.sum(0) @ mild.T - 1) / inverse.sum()
torch.testing.assert_close(w, (mild - price[:, None]) @ inverse)
torch.testing.assert_close(info.dual.equality[:, 0], price)

# %%
# Two ways to train a forecast
# ----------------------------
# Returns depend on what is known in a way that the model, a linear one, cannot have. It must choose where to be wrong.

truth = torch.randn(assets, features), torch.randn(assets, features)


def market(known):
    return torch.tanh(known @ truth[0].T) + 0.5 * (known**2 - 1) @ truth[1].T


known, later = torch.randn(400, features), torch.randn(1000, features)
returns, later_returns = market(known), market(later)


def trained(loss):
    model = torch.nn.Linear(features, assets)
    with torch.no_grad():  # both begin with the best forecast by least squares
        best = torch.linalg.lstsq(torch.cat([known, torch.ones(400, 1)], 1), returns).solution
        model.weight.copy_(best[:features].T), model.bias.copy_(best[features])
    optimiser, history = torch.optim.Adam(model.parameters(), lr=0.02), []
    for _ in range(40):
        with torch.no_grad():
            history.append(worth(hold(model(later))[0], later_returns).mean().item())
        optimiser.zero_grad()
        loss(model(known)).backward()
        optimiser.step()
    return model, history


by_error, error_history = trained(lambda forecast: (forecast - returns).square().mean())
by_worth, worth_history = trained(lambda forecast: -worth(hold(forecast)[0], returns).mean())
with torch.no_grad():
    knowing = worth(hold(later_returns)[0], later_returns)
    regrets = [(knowing - worth(hold(model(later))[0], later_returns)).mean() for model in (by_error, by_worth)]
print(f"regret: trained for the error {regrets[0]:.3f}, for the decision {regrets[1]:.3f}")
assert (knowing - worth(hold(by_worth(later))[0], later_returns) > -1e-9).all()  # nobody does better than who knows
assert regrets[1] < 0.8 * regrets[0]

# %%
# The gradient that did it, against differences along a direction.

forecast, direction = by_worth(later[:50]).detach(), torch.randn(50, assets)
_, slope = torch.func.jvp(lambda m: worth(hold(m)[0], later_returns[:50]), (forecast,), (direction,))
h = 1e-6
ahead, behind = (worth(hold(forecast + s * h * direction)[0], later_returns[:50]) for s in (1, -1))
torch.testing.assert_close(slope, (ahead - behind) / (2 * h), atol=1e-6, rtol=1e-5)

figure, axes = plt.subplots(figsize=(6, 3.5))
axes.plot(error_history, label="trained for the error of the forecast")
axes.plot(worth_history, label="trained for the worth of the decision")
axes.axhline(knowing.mean(), color="gray", linestyle=":", label="knowing the returns")
axes.set(xlabel="training step", ylabel="worth of the portfolio on new data")
axes.legend()
plt.show()
