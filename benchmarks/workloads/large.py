"""Large sparse systems: discretised differential equations, against SciPy by hand with the Jacobian written out, and others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.workload import Workload
from benchmarks.workloads.mesh import RTOL, Mesh, bands, conjugate_gradients, factors


def _workload(name: str, title: str, mesh: Mesh, by_hand: str, solve: Callable[..., Any]) -> Workload:
    equation = "u − Δu" if mesh.kept else "−Δu" + (" + w uₓ(1 + u)" if mesh.windy else "")
    made = Workload(
        name=name,
        title=title,
        description=f"""
{equation} = λ eᵘ on a mesh of {" × ".join(map(str, mesh.sides))} points, λ = {mesh.rate} ± 1 at each of them, the
parameters; float64, from zero, one thread, to a relative error of {RTOL:.0e}. By hand, the Jacobian is written out.
""",
        parameters=("rate",),
        arrays=mesh.arrays,
        reference=mesh.reference,
    )

    def ours(p: dict[str, Any], **options: Any) -> Callable[[], Any]:
        import torch

        import torchimplicit as ti

        torch.set_num_threads(1)
        start = torch.zeros_like(p["rate"])
        return lambda: ti.root(mesh.residual, start, (p["rate"],), rtol=RTOL, **options).value

    @made.torch("torchimplicit", packages=("scipy",), note="The pattern is found, and factorised, anew in every call.")
    def by_default(p: dict[str, Any]) -> Callable[[], Any]:
        return ours(p)

    @made.torch(
        "torchimplicit, kept",
        packages=("scipy",),
        note="`linear.Memory` keeps pattern and factors between calls.",
    )
    def with_memory(p: dict[str, Any]) -> Callable[[], Any]:
        import torchimplicit as ti

        return ours(p, sparsity=ti.linear.Memory())

    @made.torch("by hand", packages=("scipy",), note=f"NumPy and SciPy: {by_hand}")
    def hand(p: dict[str, Any]) -> Callable[[], Any]:
        import torch

        torch.set_num_threads(1)

        class Solved(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, rate: Any) -> Any:
                ctx.u, ctx.inverse = mesh.by_hand(rate.numpy(), solve)
                return torch.from_numpy(ctx.u.reshape(mesh.sides))

            @staticmethod
            def backward(ctx: Any, *cotangents: Any) -> Any:
                return torch.from_numpy(mesh.pullback(ctx.u, cotangents[0].numpy(), ctx.inverse))

        return lambda: Solved.apply(p["rate"])

    @made.torch(
        "torch-sla",
        packages=("torch-sla", "scipy"),
        note="`nonlinear_solve` with the Jacobian written out and SciPy's LU; "
        "of a three-dimensional mesh CG, for factors would be large.",
    )
    def torch_sla(p: dict[str, Any]) -> Callable[[], Any]:
        import torch
        from torch_sla import nonlinear_solve  # type: ignore[import-not-found]

        torch.set_num_threads(1)
        start = torch.zeros(p["rate"].numel(), dtype=torch.float64)

        def residual(u: Any, rate: Any) -> Any:
            return mesh.residual(u.view(mesh.sides), rate).flatten()

        def jacobian(u: Any, rate: Any) -> Any:
            scaled = rate.detach().numpy().ravel() * mesh.unit
            J = mesh.jacobian(u.detach().numpy(), scaled).tocoo()
            return torch.from_numpy(J.data), torch.from_numpy(J.row).long(), torch.from_numpy(J.col).long(), J.shape

        how = {"linear_solver": "scipy", "linear_method": "lu"}
        if len(mesh.sides) == 3:
            how = {"linear_solver": "pytorch", "linear_method": "cg"}
        find = partial(nonlinear_solve, jacobian_fn=jacobian, tol=RTOL, atol=0.0, line_search=False, **how)
        return lambda: find(residual, start, p["rate"]).view(mesh.sides)

    if max(mesh.sides) <= 1000:

        @made.jax(
            "optimistix, lineax",
            packages=("optimistix", "lineax"),
            note="its `Newton` with "
            + ("dense LU" if len(mesh.sides) == 1 else "lineax's BiCGStab" if mesh.windy else "lineax's CG")
            + ", the adjoint likewise; compiled. It has no sparse factors.",
        )
        def optimistix() -> Callable[[Any], Any]:
            import lineax
            import optimistix

            tags = frozenset() if len(mesh.sides) == 1 or mesh.windy else frozenset({lineax.positive_semidefinite_tag})
            tight: dict[str, Any] = {
                "rtol": RTOL,
                "atol": 1e-14,
                "max_steps": 10000,
            }  # without the second some entries would have to vanish
            linear: Any = lineax.LU()
            if len(mesh.sides) > 1:
                linear = lineax.BiCGStab(**tight) if mesh.windy else lineax.CG(**tight)
            newton = optimistix.Newton(rtol=RTOL, atol=RTOL, linear_solver=linear)
            adjoint = optimistix.ImplicitAdjoint(linear)

            def solve(p: Any) -> Any:
                start = p["rate"] * 0.0
                options: dict[str, Any] = {"adjoint": adjoint, "tags": tags, "max_steps": 50}
                return optimistix.root_find(mesh.jax_residual, newton, start, p["rate"], **options).value

            return solve

    return made


SPLU = "Newton's method with `splu` (COLAMD), whose last factors serve the backward"
bratu64 = _workload("bratu64", "Bratu's equation, 64 × 64", Mesh(64, 64), SPLU, factors)
bratu128 = _workload("bratu128", "Bratu's equation, 128 × 128", Mesh(128, 128), SPLU, factors)
bratu256 = _workload("bratu256", "Bratu's equation, 256 × 256", Mesh(256, 256), SPLU, factors)
convection = _workload("convection", "Convection, 256 × 256", Mesh(256, 256, wind=True), SPLU, factors)
chain = _workload(
    "chain",
    "A step in time on a line of 100,000",
    Mesh(100_000, step=0.1),
    "Newton's method with `solve_banded`",
    bands,
)
chain400 = _workload("chain400", "Bratu's equation on a line of 400", Mesh(400), "`solve_banded`", bands)
space = _workload(
    "space",
    "Bratu's equation, 40 × 40 × 40",
    Mesh(40, 40, 40),
    "inexact Newton with conjugate gradients",
    conjugate_gradients(RTOL),
)
MESHES = (bratu64, bratu128, bratu256, convection, chain, space)
