r"""
A fit with outliers, and what each observation did to it
=========================================================

A fit is a function of its data: :math:`z^*(y) = \arg\min_z \tfrac12\sum_i \rho\bigl(r_i(z, y_i)\bigr)`. Its derivative
in the observations says how far each of them pulls at the answer. For least squares an outlier pulls as hard as it
likes; a robust loss lets go of it, and the derivative shows that it does.
"""

import matplotlib.pyplot as plt
import scipy.optimize
import torch

import torchimplicit as ti

# %%
# Data with a certified answer
# ----------------------------
# Misra1a of the NIST Statistical Reference Datasets: volume adsorbed against pressure, and the model :math:`y = b_1\,(1
# - e^{-b_2 x})`, whose parameters NIST certifies to eleven digits. The second unknown is of the order of
# :math:`10^{-4}` and the first of :math:`10^2`; put into two leaves of a dictionary, each is held to a tolerance in its
# own unit.

x = torch.tensor(
    [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0],
    dtype=torch.float64,
)
y = torch.tensor(
    [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78],
    dtype=torch.float64,
)
certified = {"b1": 2.3894212918e02, "b2": 5.5015643181e-04}
start = {"b1": torch.tensor(500.0, dtype=torch.float64), "b2": torch.tensor(1e-4, dtype=torch.float64)}


def residuals(b, y):
    return b["b1"] * (1 - torch.exp(-b["b2"] * x)) - y


b, info = ti.least_squares(residuals, start, (y,), rtol=1e-11)
print(info)
for name, value in certified.items():
    print(f"{name} = {b[name]:.10e}, certified {value:.10e}")
    assert abs(b[name] / value - 1) < 1e-9

# %%
# Two readings go wrong
# ---------------------
# ``loss="cauchy"`` counts a residual much larger than ``f_scale`` by its logarithm only.

spoilt = y.clone()
spoilt[4] += 6
spoilt[11] -= 8


def fit(y, **loss):
    return ti.least_squares(residuals, start, (y,), **loss).value


cauchy = {"loss": "cauchy", "f_scale": 0.2}
plain, robust = fit(spoilt), fit(spoilt, **cauchy)
print(
    f"b1: {plain['b1']:.1f} by least squares, {robust['b1']:.1f} by the robust fit, {certified['b1']:.1f} without outliers"
)
assert abs(robust["b1"] / certified["b1"] - 1) < 0.02 < abs(plain["b1"] / certified["b1"] - 1)

# %%
# The influence of every observation
# ----------------------------------
# The curve at the largest pressure is the answer that is wanted; its derivative in all fourteen observations is one
# backward.


def end_of_curve(y, **loss):
    b = fit(y, **loss)
    return b["b1"] * (1 - torch.exp(-b["b2"] * x[-1]))


influence = {}
for name, loss in (("least squares", {}), ("cauchy", cauchy)):
    observed = spoilt.clone().requires_grad_()
    end_of_curve(observed, **loss).backward()
    influence[name] = observed.grad

# %%
# SciPy repeats the robust fit with one observation moved to either side, fourteen times two fits: the same numbers.


def with_scipy(y):
    def scaled(b):  # SciPy wants the parameters to be of one size
        return residuals({"b1": 240 * b[0], "b2": 5.5e-4 * b[1]}, y).numpy()

    options = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    b = scipy.optimize.least_squares(scaled, [1.0, 1.0], loss="cauchy", f_scale=0.2, jac="3-point", **options).x
    return float(240 * b[0] * (1 - torch.exp(-5.5e-4 * b[1] * x[-1])))


h = 1e-3
moved = [(with_scipy(spoilt + h * unit) - with_scipy(spoilt - h * unit)) / (2 * h) for unit in torch.eye(14)]
torch.testing.assert_close(influence["cauchy"], torch.tensor(moved, dtype=torch.float64), rtol=1e-3, atol=1e-4)

# %%
# Many curves at once
# -------------------
# With ``batch_ndim=1`` each row is a fit of its own, with its own status, here within bounds and with a weight for each observation;
# ``vmap`` of ``jacrev`` gives the derivative of every parameter in every observation of its curve, and in every weight. (Without
# ``batch_ndim`` all of z would be one fit.) A parameter scaled to be of the size of the others needs no leaf of its own.


def many(b, y, weight):
    return weight * (240 * b[..., :1] * (1 - torch.exp(-5.5e-4 * b[..., 1:] * x)) - y)


def fits(y, weight):
    start = torch.ones(*y.shape[:-1], 2, dtype=torch.float64)
    return ti.least_squares(many, start, (y, weight), bounds=(0.5, 2.0), batch_ndim=y.ndim - 1, rtol=1e-11)


noise = 0.05 * torch.randn(200, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
curves, weights = y + noise, torch.ones(200, 14, dtype=torch.float64)
b, info = fits(curves, weights)
assert info.converged.all()
in_y, in_weight = torch.vmap(torch.func.jacrev(lambda y, weight: fits(y, weight).value, argnums=(0, 1)))(
    curves, weights
)
print(f"derivatives of {tuple(b.shape)} parameters in each observation: {tuple(in_y.shape)}")
h, unit = 1e-4, torch.eye(14, dtype=torch.float64)[6]
differences = (fits(curves + h * unit, weights).value - fits(curves - h * unit, weights).value) / (2 * h)
torch.testing.assert_close(in_y[..., 6], differences, rtol=1e-5, atol=1e-9)

# %%
# The figure: the two bad readings pull at the fit by least squares, and hardly at all at the robust one; theirs is even
# of the other sign, for the farther they go, the less they count.

curve = torch.linspace(50, 800, 200, dtype=torch.float64)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(x, spoilt, "ko", ms=4, label="observations")
left.plot(x[[4, 11]], spoilt[[4, 11]], "o", ms=12, mfc="none", mec="C3", label="bad readings")
for (name, found), color in zip((("least squares", plain), ("cauchy", robust)), ("C1", "C0")):
    left.plot(curve, found["b1"] * (1 - torch.exp(-found["b2"] * curve)), color, label=name)
left.set(xlabel="pressure", ylabel="volume", title="The fits")
left.legend()
for i, ((name, values), color) in enumerate(zip(influence.items(), ("C1", "C0"))):
    right.bar(torch.arange(14) + 0.4 * i - 0.2, values, 0.4, color=color, label=name)
right.axhline(0, color="k", lw=0.5)
for i in (4, 11):
    right.axvspan(i - 0.5, i + 0.5, color="C3", alpha=0.15)
right.set(xlabel="observation", ylabel="derivative of the curve's end", title="How far each observation pulls")
right.legend()
plt.show()
