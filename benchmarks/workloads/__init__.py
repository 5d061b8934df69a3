"""The workloads by name. A new one is a file beside this one that ends in a `Workload`, and one line here."""

from benchmarks.workload import Workload
from benchmarks.workloads import (
    cell,
    fits,
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
        hypergradient.workload,
        linear_systems.tridiagonal,
        linear_systems.poisson64,
        linear_systems.poisson128,
        *large.LARGE,
        memory.workload,
    )
}
