r"""
Rules that nobody wrote down: Sudoku
====================================

A layer is shown puzzles of 4 × 4 cells with their solutions, and is told nothing of rows, columns and blocks. It is a quadratic
program in a number :math:`z` for every digit of every cell, 64 of them,

.. math:: \min_z\; 0.05\, \|z\|^2 - \text{given}^\top z \quad \text{subject to} \quad A z = A z_0,\; z \ge 0,

and what it learns are its constraints: :math:`A`, which is random to begin with, and :math:`z_0` (Amos and Kolter, OptNet, 2017).
It learns them in 120 steps, well enough to solve puzzles whose solutions it has never seen.
"""

from itertools import permutations

import matplotlib.pyplot as plt
import torch

import torchimplicit as ti

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
curvature, barrier, rows, batch, steps = 0.1, 0.01, 40, 150, 120

# %%
# The puzzles
# -----------
# There are 288 solved boards. A puzzle is one of them with 4 to 7 cells given, with which no other board agrees. 88 boards are set
# apart: training meets no puzzle that one of them solves. (They are no harder: but for the names of the digits, the order of lines
# and a reflection there are only two boards. The layer knows nothing of such changes.)

cells = torch.arange(16).reshape(4, 4)
blocks = cells.reshape(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
groups = torch.cat([cells, cells.T, blocks])  # each has each digit once: this makes boards, and is no part of the layer
halves = torch.tensor(
    [a + b for a in permutations(range(4)) for b in permutations(range(4)) if set(a[:2]) == set(b[2:])]
)
boards = halves[torch.cartesian_prod(*2 * [torch.arange(len(halves))])].flatten(1)
boards = boards[(boards[:, groups].sort(-1).values == torch.arange(4)).flatten(1).all(1)]
assert len(boards) == 288
boards = boards[torch.randperm(288)]
seen, unseen = boards[:200], boards[200:]


def puzzles(boards_of, count):
    """So many of these boards, (count, 16), with 1 for each given cell."""
    board = boards_of[torch.randint(len(boards_of), (20 * count,))]
    given = torch.rand(20 * count, 16).argsort(1).argsort(1) < torch.randint(4, 8, (20 * count, 1))
    agree = (board[:, None] == boards) | ~given[:, None]
    unique = (agree.all(-1).sum(1) == 1).nonzero().squeeze(1)[:count]
    return board[unique], given[unique]


def digits(board):
    """1 for the digit of each cell, (..., 64)."""
    return torch.nn.functional.one_hot(board, 4).flatten(-2).double()


def cost(board, given):
    return -digits(board) * given.repeat_interleave(4, -1)


# %%
# The layer
# ---------
# Where the solution is a corner it does not move with the objective, and its derivative says nothing of where else it might be. So the
# layer is trained as its barrier problem, which has :math:`-\mu \sum \log z_i` in addition. There every z is known by the
# multipliers :math:`\nu` of the rows of A, as the positive root of :math:`0.1 z - \mu / z + c = 0` with
# :math:`c = A^\top \nu - \text{given}`; left is a root in 40 unknowns.


def inside(multipliers, p, A):
    c = p + multipliers @ A
    return 2 * barrier / (c + (c.square() + 4 * curvature * barrier).sqrt())


def smooth(p, A, z0):
    def lacking(multipliers, p, A, z0):
        return (inside(multipliers, p, A) - z0) @ A.T

    multipliers = ti.root(lacking, torch.zeros(len(p), rows), (p, A, z0), batch_ndim=1).value
    return inside(multipliers, p, A)


def program(p, A, z0, **options):
    Q = curvature * torch.eye(64)
    return ti.quadratic_program(Q, p, A=A, b=A @ z0, lower=0.0, **options).value


# %%
# Its derivative is the one that ``smoothing=`` gives the program itself, by other equations, in 232 unknowns.

A, z0 = torch.nn.init.orthogonal_(torch.empty(rows, 64)), torch.full((64,), 0.25)
board, given = puzzles(seen, 3)
data = [t.clone().requires_grad_() for t in (cost(board, given), A, z0)]
weights = torch.randn(3, 64)
slopes = [torch.autograd.grad((z * weights).sum(), data) for z in (smooth(*data), program(*data, smoothing=barrier))]
for ours, other in zip(*slopes, strict=True):
    torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-6)

# %%
# Trained
# -------
# By the likelihood of the solution, as of counts: one for the right digit, none for others. Whether a puzzle is solved is asked of
# the program itself, without a barrier: in every cell the digit with the largest z has to be right.

new, new_given = puzzles(unseen, 150)


@torch.no_grad()
def solved(A, z0, board, given):
    z = program(cost(board, given), A, z0)
    return (z.unflatten(-1, (16, 4)).argmax(-1) == board).all(1)


learned, log_z0 = torch.nn.Parameter(A.clone()), torch.nn.Parameter(z0.log())
optimiser = torch.optim.Adam([learned, log_z0], betas=(0.9, 0.95))
rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.05, steps, pct_start=0.1, cycle_momentum=False)
course = []
for step in range(steps + 1):
    if step % 20 == 0:
        course.append((step, solved(learned, log_z0.exp(), new, new_given).double().mean()))
    if step < steps:
        board, given = puzzles(seen, batch)
        z, right = smooth(cost(board, given), learned, log_z0.exp()), digits(board)
        optimiser.zero_grad()
        (z - right * z.log()).sum(1).mean().backward()
        optimiser.step(), rate.step()
learned, filled = learned.detach(), log_z0.detach().exp()

board, given = puzzles(unseen, 1000)
right, few = solved(learned, filled, board, given), given.sum(1) <= 5
print(f"solved, of 1000 of boards never seen: {right.double().mean():.1%}")
print(f"of the {few.sum()} among them with 4 or 5 cells given: {right[few].double().mean():.1%}")
assert right.double().mean() >= 0.99

# %%
# What the rules are
# ------------------
# Sudoku has 64 rules, each digit once in every group and one digit in every cell; 40 of them are independent. Only the space that the
# rows of A span has a meaning. Each rule is asked how far it lies from this space (the sine of the angle), and what it says that its
# four z add up to: 1, and a little for what the barrier left to wrong digits in training.

in_group = torch.zeros(12, 16).scatter(1, groups, 1)
once = torch.einsum("gc,de->gdce", in_group, torch.eye(4)).reshape(48, 64)
sudoku = torch.cat([once, torch.eye(16).repeat_interleave(4, 1)])
assert torch.linalg.matrix_rank(sudoku) == rows


def onto(A):
    """The projection onto the rows of A."""
    V = torch.linalg.svd(A)[2][: torch.linalg.matrix_rank(A)]
    return V.T @ V


off, at_first = ((sudoku - sudoku @ onto(A)).norm(dim=1) / sudoku.norm(dim=1) for A in (learned, A))
sums = sudoku @ onto(learned) @ filled
print(f"off the learned space: {off.mean():.3f} on average, {off.max():.3f} at most; at random {at_first.mean():.2f}")
print(f"sums: {sums.min():.2f} to {sums.max():.2f}")
assert off.max() < 0.1 < at_first.min()
torch.testing.assert_close(sums, torch.ones(64), atol=0.1, rtol=0)

figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
axes[0].plot(*torch.tensor(course).T, "o-")
axes[0].set(xlabel="training step", ylabel="solved, of puzzles of boards never seen")
for ax, A, title in zip(axes[1:], (learned, sudoku), ("learned", "rules of Sudoku"), strict=True):
    ax.imshow(onto(A), vmin=-0.4, vmax=0.4, cmap="RdBu")
    ax.set(title=f"projection onto the {title}", xticks=[], yticks=[])
plt.show()
