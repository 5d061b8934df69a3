r"""
Power flow: what a megawatt costs at each corner of the grid
============================================================

The voltages of a grid are those at which what flows into every bus is what is generated there less what is used: a root
of some twenty equations, solved all day long in every control room. As a layer it also answers what follows: by how
much the losses of the whole grid grow with a megawatt more of load here or there.
"""

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.set_default_dtype(torch.float64)

# %%
# The grid
# --------
# The 14-bus test case of the IEEE, a part of the American Midwest in 1962 (`University of Washington, Power Systems
# Test Case Archive <https://labs.ece.uw.edu/pstca/>`_). Of each bus: its load in MW and MVAr, and the voltage (per
# unit, and its angle in degrees) that was published with the data. Five buses hold their voltage by a generator; bus 1
# delivers whatever is missing.

buses = torch.tensor(
    [
        [0, 0, 1.06, 0],
        [21.7, 12.7, 1.045, -4.98],
        [94.2, 19, 1.01, -12.72],
        [47.8, -3.9, 1.019, -10.33],
        [7.6, 1.6, 1.02, -8.78],
        [11.2, 7.5, 1.07, -14.22],
        [0, 0, 1.062, -13.37],
        [0, 0, 1.09, -13.36],
        [29.5, 16.6, 1.056, -14.94],
        [9, 5.8, 1.051, -15.1],
        [3.5, 1.8, 1.057, -14.79],
        [6.1, 1.6, 1.055, -15.07],
        [13.5, 5.8, 1.05, -15.16],
        [14.9, 5, 1.036, -16.04],
    ]
)
# From, to, resistance, reactance, charging of the line, and the ratio of a transformer.
lines = torch.tensor(
    [
        [1, 2, 0.01938, 0.05917, 0.0528, 1],
        [1, 5, 0.05403, 0.22304, 0.0492, 1],
        [2, 3, 0.04699, 0.19797, 0.0438, 1],
        [2, 4, 0.05811, 0.17632, 0.034, 1],
        [2, 5, 0.05695, 0.17388, 0.0346, 1],
        [3, 4, 0.06701, 0.17103, 0.0128, 1],
        [4, 5, 0.01335, 0.04211, 0, 1],
        [4, 7, 0, 0.20912, 0, 0.978],
        [4, 9, 0, 0.55618, 0, 0.969],
        [5, 6, 0, 0.25202, 0, 0.932],
        [6, 11, 0.09498, 0.1989, 0, 1],
        [6, 12, 0.12291, 0.25581, 0, 1],
        [6, 13, 0.06615, 0.13027, 0, 1],
        [7, 8, 0, 0.17615, 0, 1],
        [7, 9, 0, 0.11001, 0, 1],
        [9, 10, 0.03181, 0.0845, 0, 1],
        [9, 14, 0.12711, 0.27038, 0, 1],
        [10, 11, 0.08205, 0.19207, 0, 1],
        [12, 13, 0.22092, 0.19988, 0, 1],
        [13, 14, 0.17093, 0.34802, 0, 1],
    ]
)
load, published = buses[:, :2] / 100, buses[:, 2:]
generated = torch.zeros(14).index_fill(0, torch.tensor([1]), 0.4)  # 40 MW at bus 2
held = torch.tensor([0, 1, 2, 5, 7])
free = torch.tensor([3, 4, 6, 8, 9, 10, 11, 12, 13])

ends, (r, x, charging, ratio) = lines[:, :2].long().T - 1, lines[:, 2:].T
series = 1 / torch.complex(r, x)
near = (series + 0.5j * charging) / ratio**2
admittance = torch.zeros(14, 14, dtype=torch.complex128)
for places, value in (
    ((ends[0], ends[0]), near),
    ((ends[1], ends[1]), series + 0.5j * charging),
    ((ends[0], ends[1]), -series / ratio),
    ((ends[1], ends[0]), -series / ratio),
):
    admittance = admittance.index_put(places, value, accumulate=True)
admittance[8, 8] += 0.19j  # a capacitor at bus 9

# %%
# The layer
# ---------
# Unknown are thirteen angles and nine magnitudes.


def voltages(z):
    angle = torch.cat([torch.zeros(1), z["angle"]])
    size = published[:, 0].clone().index_put((free,), z["size"])
    return torch.polar(size, angle)


def injected(z):
    V = voltages(z)
    return V * (admittance @ V).conj()


def balance(z, load):
    missing = injected(z) + torch.complex(load[:, 0] - generated, load[:, 1])
    return {"angle": missing.real[1:], "size": missing.imag[free]}


load.requires_grad_()
flat = {"angle": torch.zeros(13), "size": torch.ones(9)}
z, info = ti.root(balance, flat, (load,), rtol=1e-12)
print(info)

V = voltages(z).detach()
degrees = torch.rad2deg(V.angle())
print(f"largest differences to the published voltages: {(V.abs() - published[:, 0]).abs().max():.4f} per unit,")
print(f"{(degrees - published[:, 1]).abs().max():.3f} degrees")
assert (V.abs() - published[:, 0]).abs().max() < 2e-3  # three digits were published
assert (degrees - published[:, 1]).abs().max() < 2e-2

# %%
# The losses, and their gradient
# ------------------------------
# What all generators deliver less what all loads take is lost on the way. Published: bus 1 delivers 232.4 MW.

losses = injected(z).real.sum()
at_bus_1 = 100 * injected(z).real[0]
print(f"bus 1 delivers {at_bus_1:.1f} MW, of which {100 * losses:.2f} MW are lost")
assert abs(at_bus_1 - 232.4) < 0.1
(gradient,) = torch.autograd.grad(losses, load)

# %%
# By differences:


def losses_with(load):
    return injected(ti.root(balance, flat, (load,), rtol=1e-13).value).real.sum()


h = 1e-5
steps = h * torch.eye(28).view(28, 14, 2)
with torch.no_grad():
    differences = torch.stack([(losses_with(load + s) - losses_with(load - s)) / (2 * h) for s in steps])
torch.testing.assert_close(gradient, differences.view(14, 2), rtol=1e-6, atol=1e-8)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
number = torch.arange(1, 15)
left.plot(number, V.abs(), "o", label="solved")
left.plot(number, published[:, 0], "k+", ms=10, label="published")
left.set(xlabel="bus", ylabel="voltage, per unit", title="The grid")
left.legend()
right.bar(number, 1000 * gradient[:, 0])
right.set(xlabel="bus", ylabel="kW lost", title="What one more MW of load costs on the way")
plt.show()
