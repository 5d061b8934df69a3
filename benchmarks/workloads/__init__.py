"""The workloads by name. A new one is a file beside this one that ends in a `Workload`, and one line here."""

from benchmarks.workload import Workload
from benchmarks.workloads import cell, implicit_explicit, small_roots

WORKLOADS: dict[str, Workload] = {
    module.workload.name: module.workload for module in (implicit_explicit, cell, small_roots)
}
