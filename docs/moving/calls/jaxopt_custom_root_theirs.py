import jax
import jax.numpy as jnp
from jaxopt import implicit_diff

jax.config.update("jax_enable_x64", True)
x = jnp.array([0.5, 2.0, 7.0])


def condition(z, x):
    return z**3 + z - x


@implicit_diff.custom_root(condition)
def solve(z0, x):  # by any means
    return jax.lax.fori_loop(
        0,
        60,
        lambda _, z: z - (z**3 + z - x) / (3 * z**2 + 1),
        z0,
    )


def loss(x):
    return jnp.sum(solve(jnp.ones(3), x) ** 2)
