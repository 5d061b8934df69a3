"""LU of many small matrices at once, each instruction at work on several of them, for kernels of torch.compile.

LAPACK takes one matrix after the other, and a matrix of 8 × 8 is over before its loops have begun. Here a block of matrices is
factorised side by side, entry by entry, which a C++ compiler turns into vector instructions. The code is built when it is first
needed, by what torch.compile builds its own with. On one core with AVX-512
10,000 matrices of 8 × 8 take a fifth of LAPACK's time, of 16 × 16 less than half.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

LARGEST = 16  # n beyond which LAPACK is as fast
FEWEST = 64  # matrices below which building the code is not worth it
BYTES = 64  # of a row of vector lanes

_NAMES = {torch.float64: "double", torch.float32: "float"}

_SOURCE = """
#include <cstdint>
#include <algorithm>

using T = {scalar};
constexpr int N = {n}, V = {lanes};
typedef T Lanes __attribute__((vector_size(V * sizeof(T))));  // one number of each of V systems

struct Block {{ Lanes a[N][N], x[N], row[N]; }};

static inline Lanes size(Lanes x) {{ return x < 0 ? -x : x; }}

template <typename Mask> static inline void swap_where(Mask m, Lanes& p, Lanes& q) {{
    Lanes old = p; p = m ? q : p; q = m ? old : q;
}}

static void factor(Block& s) {{
    for (int k = 0; k < N; k++) {{
        Lanes largest = size(s.a[k][k]), row = Lanes{{}} + T(k);
        for (int i = k + 1; i < N; i++) {{
            auto larger = size(s.a[i][k]) > largest;
            largest = larger ? size(s.a[i][k]) : largest;
            row = larger ? Lanes{{}} + T(i) : row;
        }}
        s.row[k] = row;
        for (int i = k + 1; i < N; i++) for (int j = 0; j < N; j++) swap_where(row == T(i), s.a[i][j], s.a[k][j]);
        Lanes inverse = 1 / s.a[k][k];
        for (int i = k + 1; i < N; i++) {{
            s.a[i][k] *= inverse;
            for (int j = k + 1; j < N; j++) s.a[i][j] -= s.a[i][k] * s.a[k][j];
        }}
    }}
}}

static void solve(Block& s) {{
    for (int k = 0; k < N; k++) for (int i = k + 1; i < N; i++) swap_where(s.row[k] == T(i), s.x[i], s.x[k]);
    for (int k = 0; k < N; k++) for (int i = k + 1; i < N; i++) s.x[i] -= s.a[i][k] * s.x[k];
    for (int k = N - 1; k >= 0; k--) {{
        s.x[k] /= s.a[k][k];
        for (int i = 0; i < k; i++) s.x[i] -= s.a[i][k] * s.x[k];
    }}
}}

static void solve_transposed(Block& s) {{
    for (int k = 0; k < N; k++) {{
        s.x[k] /= s.a[k][k];
        for (int i = k + 1; i < N; i++) s.x[i] -= s.a[k][i] * s.x[k];
    }}
    for (int k = N - 1; k >= 0; k--) for (int i = 0; i < k; i++) s.x[i] -= s.a[k][i] * s.x[k];
    for (int k = N - 1; k >= 0; k--) for (int i = N - 1; i > k; i--) swap_where(s.row[k] == T(i), s.x[i], s.x[k]);
}}

extern "C" void kernel(T* A, int32_t* pivots, T* x, const int64_t batch,
                       const int64_t s0, const int64_t s1, const int64_t s2, const int64_t task) {{
    // task 0: factor, 1: solve, 2: solve transposed
    #pragma omp parallel for if (batch * N * N > 16384)
    for (int64_t first = 0; first < batch; first += V) {{
        Block s;
        for (int v = 0; v < V; v++) {{
            int64_t system = std::min<int64_t>(first + v, batch - 1);  // the last block is filled up with the last one
            for (int i = 0; i < N; i++) {{
                for (int j = 0; j < N; j++) s.a[i][j][v] = A[system * s0 + i * s1 + j * s2];
                if (task == 0) continue;
                s.x[i][v] = x[system * N + i];
                s.row[i][v] = T(pivots[system * N + i] - 1);
            }}
        }}
        if (task == 0) factor(s); else if (task == 1) solve(s); else solve_transposed(s);
        for (int v = 0; v < V && first + v < batch; v++) for (int i = 0; i < N; i++) {{
            int64_t at = (first + v) * N + i;
            if (task != 0) {{ x[at] = s.x[i][v]; continue; }}
            pivots[at] = int32_t(s.row[i][v]) + 1;
            for (int j = 0; j < N; j++) A[(first + v) * s0 + i * s1 + j * s2] = s.a[i][j][v];
        }}
    }}
}}
"""


def pays(A: Tensor) -> bool:
    """Whether the matrices (B, n, n) are so many and so small, and of a kind that the code is for (which is written for GCC and
    Clang)."""
    return (
        sys.platform != "win32"
        and A.device.type == "cpu"
        and A.dtype in _NAMES
        and A.ndim == 3
        and 1 < A.shape[-1] <= LARGEST
        and A.shape[0] >= FEWEST
    )


@torch.library.custom_op("torchimplicit::factor_small", mutates_args=())
def factor(A: Tensor) -> tuple[Tensor, Tensor]:
    """(LU, pivots) of A (B, n, n), as of ``torch.linalg.lu_factor``."""
    LU = A.clone(memory_format=torch.contiguous_format)
    pivots = torch.empty(A.shape[:-1], dtype=torch.int32)
    _built(A.dtype, A.shape[-1])(LU, pivots, LU, len(LU), *LU.stride(), 0)
    return LU, pivots


@factor.register_fake
def _(A: Tensor) -> tuple[Tensor, Tensor]:
    return A.new_empty(A.shape), A.new_empty(A.shape[:-1], dtype=torch.int32)


@torch.library.custom_op("torchimplicit::solve_small", mutates_args=())
def solve(LU: Tensor, pivots: Tensor, b: Tensor, transposed: bool) -> Tensor:
    """x (B, n) with A x = b, or Aᵀ x = b, from the factors of A."""
    x = b.clone(memory_format=torch.contiguous_format)
    _built(LU.dtype, LU.shape[-1])(LU, pivots.contiguous(), x, len(LU), *LU.stride(), 1 + transposed)
    return x


@solve.register_fake
def _(LU: Tensor, pivots: Tensor, b: Tensor, transposed: bool) -> Tensor:
    return b.new_empty(b.shape)


@cache
def _built(dtype: torch.dtype, n: int) -> Callable[..., Any]:
    from torchimplicit.private.dynamo import built_extension

    scalar = _NAMES[dtype]
    source = _SOURCE.format(scalar=scalar, n=n, lanes=BYTES // dtype.itemsize)
    signature = [f"{scalar}*", "int32_t*", f"{scalar}*", *["const int64_t"] * 5]
    return built_extension(signature, source)
