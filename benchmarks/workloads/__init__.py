"""The workloads by name, and groups of them. A new one is a file beside this one that ends in a `Workload`, and one line here."""

from benchmarks.workload import Group, Workload
from benchmarks.workloads import (
    adjoints,
    cell,
    cone_programs,
    fits,
    graph_equilibrium,
    hypergradient,
    implicit_explicit,
    kepler,
    large,
    linear_systems,
    memory,
    one_root,
    quadratic_programs,
    slow_cell,
    small_cell,
    tanh_roots,
)

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        implicit_explicit.workload,
        adjoints.workload,
        cell.workload,
        slow_cell.workload,
        small_cell.workload,
        tanh_roots.small_roots,
        tanh_roots.roots64,
        tanh_roots.roots256,
        one_root.two,
        one_root.eight,
        kepler.workload,
        fits.workload,
        quadratic_programs.fifty,
        quadratic_programs.ten,
        cone_programs.workload,
        hypergradient.workload,
        linear_systems.tridiagonal,
        linear_systems.poisson64,
        linear_systems.poisson128,
        *large.MESHES,
        large.chain400,
        graph_equilibrium.workload,
        memory.workload,
    )
}

GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        Group(
            name="large",
            title="Large systems",
            description="""
Value and gradient of sparse systems with up to 100,000 unknowns. What is kept from call to call is told below, and what is done
by hand. A dash: the library has nothing for it. (POUNCE, an interior point method for programs with inequalities, has no
part here: none of these has any.)
""",
            workloads=(
                *(workload.name for workload in large.MESHES),
                linear_systems.poisson128.name,
                graph_equilibrium.workload.name,
                large.chain400.name,
            ),
            against="by hand",
        ),
    )
}
