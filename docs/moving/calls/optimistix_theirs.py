import jax
import jax.numpy as jnp
import optimistix as optx

jax.config.update("jax_enable_x64", True)
t = jnp.array([0.0, 0.5, 1.0, 1.5, 2.0])
x = jnp.array([2.0, 1.1, 0.8, 0.3, 0.25])  # the data


def residuals(z, x):
    return z[0] * jnp.exp(-z[1] * t) - x


solver = optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10)


def loss(x):
    sol = optx.least_squares(
        residuals,
        solver,
        jnp.array([1.0, 1.0]),
        args=x,
        throw=True,
    )
    return jnp.sum(sol.value**2)
