import jax
import jax.numpy as jnp
import jaxopt

jax.config.update("jax_enable_x64", True)
A = jnp.array(
    [[1.0, 0.2], [0.3, -1.0], [0.5, 0.7], [-0.4, 1.1]]
)
y = jnp.array([1.0, -1.0, 1.0, -1.0])
x = jnp.array([-1.0, 0.5])  # logarithms of the penalties


def inner(z, x):
    return (
        jnp.logaddexp(0.0, -y * (A @ z)).sum()
        + (jnp.exp(x) * z**2).sum() / 2
    )


solver = jaxopt.LBFGS(inner, tol=1e-10, maxiter=200)


def loss(x):
    z, state = solver.run(jnp.zeros(2), x)
    return jnp.sum(z**2)
