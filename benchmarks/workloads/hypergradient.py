"""How the validation loss of a logistic regression depends on its penalties: one small inner problem per call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.compiled import NOTE, in_graph
from benchmarks.workload import Arrays, Reference, Workload

TRAIN = 400
RTOL = 1e-8


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    order = rng.permutation(len(X))
    X, signs = X[order], 2.0 * y[order] - 1
    X = (X - X[:TRAIN].mean(0)) / X[:TRAIN].std(0)
    A = signs[:, None] * X  # a row's margin is its product with the weights
    penalties = rng.uniform(-5, -2, X.shape[1])
    return {"train": A[:TRAIN], "validation": A[TRAIN:], "penalties": penalties, "c": np.array(1.0)}


def reference(arrays: Arrays) -> Reference:
    """Newton's method on the weights with the Hessian written out, then the implicit function theorem."""
    A, V, penalties = arrays["train"], arrays["validation"], np.exp(arrays["penalties"])
    w = np.zeros(A.shape[1])
    for _ in range(50):
        s = 1 / (1 + np.exp(A @ w))
        H = (A.T * (s * (1 - s))) @ A / len(A) + np.diag(penalties)
        step = np.linalg.solve(H, penalties * w - A.T @ s / len(A))
        w = w - step
        if np.abs(step).max() <= 1e-14:
            break
    else:
        raise RuntimeError("the reference did not converge")
    s = 1 / (1 + np.exp(V @ w))
    loss_gradient = -V.T @ s / len(V)
    loss = np.logaddexp(0, -V @ w).mean()
    return Reference(np.array(loss), {"penalties": -penalties * w * np.linalg.solve(H, loss_gradient)})


workload = Workload(
    name="hypergradient",
    title="Hypergradient of a logistic regression",
    description=f"""
Weights of a logistic regression on {TRAIN} patients (scikit-learn's breast_cancer, 30 standardised features), with one
L2 penalty for each feature; value: the loss on the other 169 patients; gradient: in the 30 log-penalties. float64, from
zero, to a training gradient of {RTOL:.0e} of that at the start.
""",
    parameters=("penalties",),
    arrays=arrays,
    reference=reference,
)


def _objective(w: Any, penalties: Any, A: Any) -> Any:
    import torch

    return torch.nn.functional.softplus(-A @ w).mean() + 0.5 * (penalties.exp() * w**2).sum()


def _validation(w: Any, A: Any) -> Any:
    import torch

    return torch.nn.functional.softplus(-A @ w).mean()


def _torchimplicit(p: dict[str, Any], compile: bool) -> Callable[[], Any]:
    import torch

    import torchimplicit as ti

    w0 = torch.zeros_like(p["penalties"])
    args = (p["penalties"], p["train"])
    options: dict[str, Any] = {"rtol": RTOL, "atol": 0.0}
    return in_graph(lambda: _validation(ti.minimize(_objective, w0, args, **options).value, p["validation"]), compile)


@workload.torch("torchimplicit")
def torchimplicit(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, compile=False)


@workload.torch("torchimplicit, compiled", note=NOTE)
def torchimplicit_compiled(p: dict[str, Any]) -> Callable[[], Any]:
    return _torchimplicit(p, compile=True)


def _newton(gradient: Callable[..., Any], hessian: Callable[..., Any], w: Any, *args: Any) -> Any:
    import torch

    bound = None
    while True:
        r = gradient(w, *args)
        norm = r.norm()
        bound = RTOL * norm if bound is None else bound
        if norm <= bound:
            return w
        w = w - torch.linalg.solve(hessian(w, *args), r)


def _by_hand(p: dict[str, Any], gradient: Callable[..., Any], hessian: Callable[..., Any]) -> Callable[[], Any]:
    """Newton's method, and in the backward of a Function the Hessian's solve and one product through the gradient."""
    import torch

    class Weights(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, penalties: Any, A: Any) -> Any:
            w = _newton(gradient, hessian, torch.zeros_like(penalties), penalties, A)
            ctx.save_for_backward(w, penalties, A)
            return w

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            w, penalties, A = ctx.saved_tensors
            u = torch.linalg.solve(hessian(w, penalties, A), cotangents[0])
            with torch.enable_grad():
                penalties = penalties.detach().requires_grad_()
                return torch.autograd.grad(gradient(w, penalties, A), penalties, -u)[0], None

    return lambda: _validation(Weights.apply(p["penalties"], p["train"]), p["validation"])


@workload.torch("torch by hand", note="Newton's method with `torch.func.grad` and `torch.func.hessian`")
def by_hand(p: dict[str, Any]) -> Callable[[], Any]:
    import torch

    return _by_hand(p, torch.func.grad(_objective), torch.func.hessian(_objective))


@workload.torch("torch by hand, analytic", note="the same with gradient and Hessian written out")
def by_hand_analytic(p: dict[str, Any]) -> Callable[[], Any]:
    import torch

    def gradient(w: Any, penalties: Any, A: Any) -> Any:
        return penalties.exp() * w - A.mT @ torch.sigmoid(-A @ w) / len(A)

    def hessian(w: Any, penalties: Any, A: Any) -> Any:
        s = torch.sigmoid(-A @ w)
        return (A.mT * (s * (1 - s))) @ A / len(A) + penalties.exp().diag()

    return _by_hand(p, gradient, hessian)


@workload.torch(
    "torchopt",
    packages=("torchopt",),
    note="`custom_root` around the same Newton's method (it brings none of its own), adjoint by conjugate gradients",
)
def torchopt_custom_root(p: dict[str, Any]) -> Callable[[], Any]:
    import torch
    import torchopt

    gradient = torch.func.grad(_objective)
    hessian = torch.func.hessian(_objective)
    w0 = torch.zeros_like(p["penalties"])

    @torchopt.diff.implicit.custom_root(
        gradient, argnums=1, solve=torchopt.linear_solve.solve_cg(rtol=RTOL, atol=0.0, maxiter=200)
    )
    def weights(w0: Any, penalties: Any, A: Any) -> Any:
        with torch.no_grad():
            return _newton(gradient, hessian, w0, penalties, A)

    return lambda: _validation(weights(w0, p["penalties"], p["train"]), p["validation"])


@workload.torch(
    "xitorch",
    packages=("xitorch",),
    note="its `minimize` by Broyden's second method, started with −I/4 as the inverse Jacobian (its own choice does not "
    "converge), adjoint by conjugate gradients",
)
def xitorch_minimize(p: dict[str, Any]) -> Callable[[], Any]:
    import torch
    from xitorch.optimize import minimize

    w0 = torch.zeros_like(p["penalties"])
    with torch.enable_grad():
        start = w0.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_objective(start, p["penalties"].detach(), p["train"]), start)
    adjoint = {"method": "cg", "rtol": RTOL, "atol": 0.0}
    options = {"method": "broyden2", "alpha": -4.0, "f_tol": RTOL * float(gradient.norm()), "bck_options": adjoint}

    def solve() -> Any:
        w = minimize(_objective, w0, (p["penalties"], p["train"]), **options)
        return _validation(w, p["validation"])

    return solve


def _jax_objective(w: Any, args: Any) -> Any:
    import jax
    import jax.numpy as jnp

    penalties, A = args
    return jax.nn.softplus(-A @ w).mean() + 0.5 * (jnp.exp(penalties) * w**2).sum()


def _jax_solve(find: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    import jax
    import jax.numpy as jnp

    def solve(p: dict[str, Any]) -> Any:
        w = find(jnp.zeros_like(p["penalties"]), (p["penalties"], p["train"])).value
        return jax.nn.softplus(-p["validation"] @ w).mean()

    return solve


@workload.jax("optimistix, newton", packages=("optimistix", "lineax"), note="`root_find` on the gradient, under jit")
def optimistix_newton() -> Callable[[dict[str, Any]], Any]:
    import jax
    import optimistix

    solver: Any = optimistix.Newton(rtol=RTOL, atol=RTOL)
    gradient = jax.grad(_jax_objective)
    return _jax_solve(lambda w, args: optimistix.root_find(gradient, solver, w, args))


@workload.jax("optimistix, BFGS", packages=("optimistix", "lineax"), note="`minimise`, under jit")
def optimistix_bfgs() -> Callable[[dict[str, Any]], Any]:
    import optimistix

    solver: Any = optimistix.BFGS(rtol=RTOL, atol=RTOL)
    return _jax_solve(lambda w, args: optimistix.minimise(_jax_objective, solver, w, args))
