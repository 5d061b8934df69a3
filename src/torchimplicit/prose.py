"""What is said of a status: what happened, the likely causes, and what to try. The advice depends on what was sought."""

from __future__ import annotations

ROOT = {
    "CONVERGED": "the estimated error of z is within the tolerance.",
    "MAX_STEPS": (
        "the step limit was reached before the tolerance. Likely causes: (a) slow convergence; (b) a tolerance tighter "
        "than needed; "
        "(c) no root near the start. Try a larger max_steps, another solver ('newton', 'dogleg', 'newton_krylov'), a "
        "better z0, or a "
        "looser rtol."
    ),
    "STAGNATED": (
        "z came no nearer to a root, and its estimated error is above the tolerance. Likely causes: (a) the tolerance lies below "
        "the rounding errors of g in this dtype; (b) a local minimum of |g| that is no root; (c) a cycle; (d) a g that is not "
        "smooth: a jump or a pole, where it changes its sign without a root, and none was found beyond, or wiggles so fine that its "
        "Jacobian says nothing of the way to a root. Try a looser rtol/atol, float64, "
        "another z0 or solver."
    ),
    "DIVERGED": (
        "the steps led away without bound. Likely causes: (a) a start too far away; (b) plain steps ('picard', 'anderson') on "
        "equations of which z - g(z) is no contraction; (c) a g without a root, which only comes near to 0 towards infinity, as "
        "exp(-z) does: what is 0 there is no root but a number too small for its dtype. Try 'newton' or 'dogleg', damping, or a "
        "better z0."
    ),
    "NONFINITE": (
        "NaN or Inf appeared. Likely causes: (a) NaN or Inf in the arguments; (b) a step out of g's domain (log, sqrt, "
        "division); (c) overflow. Check the arguments, choose z0 inside the domain, damp the steps, or reparametrise z."
    ),
    "SINGULAR": (
        "the Jacobian dg/dz is singular at z, so Newton's step does not exist there. Likely causes: (a) no root near: |g| has "
        "a local minimum, as that of z**2 + 1 at 0; (b) the start itself is such a point: start elsewhere, or take "
        "solver='dogleg'; "
        "(c) a multiple root or a fold, where there is no derivative either; (d) fewer independent equations than unknowns: "
        "ti.least_squares, or further equations that fix what is free."
    ),
    "STOCHASTIC": (
        "g gave two different answers for one z: it is stochastic, so it has no root to converge to. Likely causes: (a) dropout "
        "in training mode; (b) random numbers drawn inside g. Draw the noise (or the dropout mask) once, outside, and pass it "
        "in args, or call .eval() on the module. randomness='frozen' repeats the numbers of torch's default generators, of no other."
    ),
    "SADDLE": (
        "the gradient vanishes, but this is no minimum: a saddle point or a maximum, where the Hessian has a negative eigenvalue, or "
        "an inflection, beyond which the objective goes on falling. Likely causes: (a) a solver of equations, such as 'newton', that "
        "goes to the nearest stationary point; (b) a start that is stationary itself, or from which the way down leads to this "
        "point. Start nearer to the minimum, or elsewhere; of the solvers 'trust_newton', the default, is the one that sees its way "
        "down from a saddle point."
    ),
    "LOCAL_MINIMUM": (
        "the norm of g has a local minimum here that is no root: no small step makes it smaller. Likely causes: (a) the equations "
        "have no root near the start; (b) the start lies in the basin of this minimum. Start elsewhere, check that the equations "
        "have a root for these arguments, or take ti.least_squares if the smallest residual is what is wanted."
    ),
    "NO_BRACKET": (
        "no interval was found in which g changes its sign, so there is nothing to bisect. Likely causes: (a) g has no root "
        "there; (b) an even number of roots between the ends; (c) the search started too far away; (d) g is NaN on the "
        "way, or at an end that was given, which is then left out. Give a bracket whose ends have opposite "
        "signs, or start nearer to the root."
    ),
    "INACCURATE": (
        "z* lies farther from the solution than its tolerance allows, as Newton's correction there says, so this is the derivative at "
        "another point. Likely causes: (a) a solver whose progress was too slow to judge the error by; (b) a solver of your own, or a "
        "black box, that stopped early; (c) a multiple root, near which all are slow; (d) a fit or a minimum whose Hessian is singular "
        "to rounding there: the data do not determine a parameter, so it can be anything. Try a smaller rtol, another solver, or "
        "another z0; of (d), take the parameter out, or add a residual for what is known of it."
    ),
    "COUPLED": (
        "what the function returns for this system depends on the z of other systems of the batch, which batch_ndim says are "
        "independent. Likely causes: (a) a mean, a norm or a maximum over the batch dimension; (b) BatchNorm in training mode, or "
        "attention across the batch; (c) a mixed-up dimension. Use batch_ndim=0, one system of all numbers, or keep "
        "the systems apart."
    ),
    "PRIMAL_INFEASIBLE": (
        "no z meets all constraints, or none near where the search ended: the sum of their squared violations has a minimum there that "
        "is not 0. Likely causes: (a) constraints that contradict each other or the bounds; (b) a start from which the way to those "
        "that hold leads past a local minimum of the violation. Check the constraints, or take another z0."
    ),
    "DUAL_INFEASIBLE": (
        "the objective falls without end within the constraints. Add bounds, a constraint, or a regularisation."
    ),
    "DEGENERATE": (
        "a constraint or a bound is only just met, without any force on it (z at its bound, the slope there or the multiplier 0), or "
        "inequalities that hold z depend on each other: whether they hold z changes with the arguments, so there are several one-sided "
        "derivatives, and the one given is that of one side. "
        "Where a useful number is enough, smooth the problem; else move the arguments off that point."
    ),
    "NONCONVEX": "the objective is not convex, so there may be several minima. Use ti.minimize with constraints=.",
    "RUNNING": "the solve has not ended.",
}

TOO_LOOSE = (  # INACCURATE too
    "z* is as near to the solution as its tolerance allows, but over such a distance the derivative changes by a quarter or more. "
    "Try a smaller rtol."
)

_STATIONARY = {
    "STOCHASTIC": ROOT["STOCHASTIC"]
    .replace("g gave", "the function gave")
    .replace("inside g", "inside it")
    .replace("no root to converge to", "nothing to converge to"),
    "NONFINITE": (
        "NaN or Inf appeared, in the function or in its derivatives. Likely causes: (a) NaN or Inf in the arguments; (b) a step "
        "out of the function's domain (log, sqrt, division); (c) a derivative that is infinite (sqrt or a norm at 0); "
        "(d) overflow. "
        "Check the arguments, choose z0 inside the domain, keep z there with bounds=, or reparametrise z."
    ),
}

GIVEN = "answer of the solver"  # the one kind that is not searched: no steps are taken, and none are told of

OTHERS: dict[str, dict[str, str]] = {
    "fixed point": {
        "MAX_STEPS": (
            "the step limit was reached before the tolerance. Likely causes: (a) slow convergence (a contraction "
            "factor near 1); (b) "
            "a tolerance tighter than needed; (c) f is no contraction. Try a larger max_steps, another solver ('anderson', "
            "'newton', 'newton_krylov'), a better z0, or a looser rtol."
        ),
        "STAGNATED": (
            "z came no nearer to a fixed point, and its estimated error is above the tolerance. Likely causes: (a) the tolerance "
            "lies below the rounding errors of f in this dtype; (b) a cycle: f is no contraction; (c) a jump of f. Try a looser "
            "rtol/atol, float64, smaller weights in f (spectral normalisation), a damped f, or ti.root on z - f(z), whose "
            "methods do not rely on a contraction."
        ),
        "DIVERGED": (
            "the steps led away without bound. Likely causes: (a) f is no contraction (plain steps need a spectral radius of df/dz "
            "below 1); (b) an f without a fixed point, as z + exp(-z) is: what is 0 there is lost in the rounding of z. Try 'anderson' "
            "or 'newton', damping, weights that are smaller (spectral normalisation), or a better z0."
        ),
        "SINGULAR": (
            "the Jacobian I - df/dz is singular at z, so Newton's step does not exist there. Likely causes: (a) a whole curve of "
            "fixed points (a gauge that f leaves free): fix it in f; (b) f touches the identity (a fold); (c) no fixed point near."
        ),
    },
    "minimum": {
        **_STATIONARY,
        "MAX_STEPS": (
            "the step limit was reached before the tolerance. Likely causes: (a) a narrow valley, or unknowns of very different "
            "sizes; (b) a tolerance tighter than needed; (c) an objective without a minimum. Try a larger max_steps, a method with "
            "second derivatives ('trust_newton', 'newton_cg'), unknowns scaled to similar sizes, a better z0, or a looser rtol."
        ),
        "STAGNATED": (
            "no step led lower, and the estimated error of z is above the tolerance. Likely causes: (a) the tolerance "
            "lies below the "
            "rounding errors of the gradient in this dtype; (b) a kink of the objective, where the gradient does not "
            "vanish; (c) an "
            "objective that is flat, or is undefined beside z. Try a looser rtol/atol, float64, a smooth objective, or another z0."
        ),
        "DIVERGED": (
            "the steps led away without bound. Likely causes: (a) an objective without a minimum, which falls for ever; (b) a minimum "
            "at infinity, towards which the objective levels off, as that of a logistic regression does without a penalty where the "
            "classes can be separated; (c) a solver of equations ('newton', 'anderson', ...), which need not go downhill. Add bounds= "
            "or a penalty (a small multiple of |z|**2), or take a solver that goes downhill ('trust_newton', 'lbfgs')."
        ),
        "SINGULAR": (
            "the Hessian is singular at z: the minimum is not isolated, or as flat as that of z**4. Likely causes: (a) "
            "a direction in "
            "which the objective does not change; (b) a minimum of higher order. Regularise it (add a small multiple "
            "of |z|**2), or "
            "take the free direction out of z."
        ),
    },
    "least-squares fit": {
        **_STATIONARY,
        "MAX_STEPS": (
            "the step limit was reached before the tolerance. Likely causes: (a) parameters that the data hardly tell "
            "apart, or of very "
            "different sizes; (b) a tolerance tighter than needed; (c) a start too far away. Try a larger max_steps, "
            "'levenberg_marquardt' or 'dogleg', parameters scaled to similar sizes, a better z0, or a looser rtol."
        ),
        "STAGNATED": (
            "no step made the sum of squares smaller, and the estimated error of z is above the tolerance. Likely causes: (a) the "
            "tolerance lies below the rounding errors of the residuals in this dtype; (b) a kink of a residual or a loss; (c) "
            "parameters that the data do not tell apart. Try a looser rtol/atol, float64, fewer parameters, or another z0."
        ),
        "DIVERGED": (
            "the steps led away without bound. Likely causes: (a) residuals that fall for ever towards infinite "
            "parameters; (b) a solver "
            "of equations. Add bounds=, a penalty, a better z0, or take 'levenberg_marquardt'."
        ),
        "SINGULAR": (
            "the data do not determine the parameters: the Jacobian of the residuals has not full rank at z, or the "
            "Hessian is singular. "
            "Likely causes: (a) parameters of which only a combination matters; (b) fewer data than parameters. Take "
            "parameters out, or "
            "add a residual for what is known of them."
        ),
    },
    "solution of the linear system": {
        "CONVERGED": "the residual is within the tolerance.",
        "MAX_STEPS": (
            "the linear solver reached its step limit. Likely cause: an ill-conditioned A. Try a larger max_steps, a "
            "preconditioner, a "
            "direct solver (ti.linear.LU()), or a looser rtol."
        ),
        "STAGNATED": (
            "the linear solver could not make the residual smaller, above the tolerance. Likely causes: (a) a singular or "
            "ill-conditioned A; (b) a matrix of another kind than the solver needs (CG: symmetric positive definite). Try "
            "ti.linear.GMRES() or ti.linear.LU(), a preconditioner, float64, or a looser rtol."
        ),
        "NONFINITE": "NaN or Inf in A or b, or an overflow. Check them.",
        "SINGULAR": (
            "A is singular to working precision: A z = b has no solution, or many. Likely causes: (a) a row or a "
            "column of zeros; (b) "
            "equations that depend on each other. Regularise A, or take ti.least_squares(lambda z: A @ z - b, z0)."
        ),
    },
    "derivative": {
        "CONVERGED": "the residual of the derivative's linear system is within the tolerance.",
        "MAX_STEPS": (
            "the linear solver of the backward reached its step limit, so the gradient is not exact. Likely cause: an "
            "ill-conditioned "
            "dg/dz. Try ti.Implicit(max_steps=...), a preconditioner or another solver, "
            "ti.Implicit(ti.linear.GMRES(...)), or a looser "
            "ti.Implicit(rtol=...)."
        ),
        "STAGNATED": (
            "the linear system of the derivative was not solved to tolerance, so the gradient is not exact. Likely "
            "causes: (a) dg/dz is "
            "nearly singular; (b) systems of a batch that influence each other, although batch_ndim says that they are "
            "independent; "
            "(c) a linear solver that does not fit. Try float64, batch_ndim=0, or another solver, ti.Implicit(ti.linear.LU())."
        ),
        "NONFINITE": (
            "there is no derivative: the solve itself found no solution (NaN or Inf, constraints that nothing meets, an objective "
            "that falls without end or is not convex), or NaN or Inf are in dg/dz at z* or in the incoming gradient. "
            "Take failed systems out of the loss (info.converged tells), and look for sqrt, log or division at 0 in g."
        ),
        "SINGULAR": (
            "the Jacobian dg/dz is singular to working precision, at z* or at a multiple root that z* is near, so the implicit "
            "function theorem does not apply: dz*/dx does not exist or is not unique. Likely causes: (a) a multiple root or a fold; "
            "(b) fewer independent equations than unknowns; (c) parameters that the data of a fit do not determine (only their "
            "product matters, or an amplitude is 0, and its rate is free), or a minimum that is flat along a line. Reparametrise or "
            "regularise the condition, or add a residual for what is known of such a parameter; no solver can give this gradient."
        ),
    },
    "solution of the program": {
        "PRIMAL_INFEASIBLE": (
            "no z meets the constraints: a combination of them says 0 <= -1, and info.certificate holds its multipliers. Likely "
            "causes: (a) bounds or inequalities that contradict each other; (b) equalities that do; (c) a sign: G z <= h is meant. "
            "Loosen the constraints that have a multiplier there, or add a slack variable with a cost."
        ),
        "DUAL_INFEASIBLE": (
            "the objective falls without bound along a direction that the constraints allow (info.certificate.z), or for 1e7 times as "
            "far as the data are large. Likely causes: (a) a Q that is 0 along it, as in a linear program, or below 1e-8 of its size; "
            "(b) a missing bound. Add bounds, or a small multiple of the identity to Q."
        ),
        "NONCONVEX": (
            "the objective is not convex: Q has a negative eigenvalue in a direction that the equalities leave free, so a stationary "
            "point need be no minimum. Likely causes: (a) a sign; (b) a Q that was learned: make it L @ L.mT. ti.minimize finds local "
            "minima."
        ),
        "CONVERGED": "the optimality conditions are met, and the estimated error of z is within the tolerance.",
        "MAX_STEPS": (
            "the interior-point method reached its step limit. Likely causes: (a) a program that is nearly infeasible or unbounded; "
            "(b) numbers of very different sizes. Try a larger max_steps, other units, or scaled constraints."
        ),
        "STAGNATED": (
            "no set of constraints was found that holds z*, and the optimality conditions are not met to 1e-9. Likely causes: (a) a "
            "program that is nearly infeasible or unbounded; (b) numbers of very different sizes; (c) a Q that is nearly 0 in some "
            "direction. Try other units, scaled constraints, or a small multiple of the identity added to Q."
        ),
        "NONFINITE": "NaN or Inf in the data (an infinite h, lower or upper means no constraint; -inf as h is none). Check them.",
    },
    "solution of the cone program": {
        "PRIMAL_INFEASIBLE": (
            "no z has b - A z in the cones: info.certificate.dual is a y in the dual cones with A^T y = 0 and b^T y = -1. Likely "
            "causes: (a) constraints that contradict each other; (b) a sign: A z + s = b with s in the cones is meant; (c) rows in "
            "another order than ti.Cones has. Loosen the constraints that have a multiplier there."
        ),
        "DUAL_INFEASIBLE": (
            "the objective falls without bound along a direction that the cones allow (info.certificate.z). Likely causes: (a) a "
            "missing constraint; (b) a sign. Add constraints, or a small multiple of the identity to P."
        ),
        "NONCONVEX": "P has a negative eigenvalue, so a stationary point need be no minimum. Make it L @ L.mT.",
        "CONVERGED": "the optimality conditions are met, and the estimated error of z is within the tolerance.",
        "MAX_STEPS": "the solver reached its step limit, and z does not meet the optimality conditions. Try a larger max_steps.",
        "STAGNATED": (
            "the solver found neither a solution nor a proof that there is none, or z does not meet the optimality conditions to "
            "1e-9. Likely causes: (a) a program that is nearly infeasible or unbounded, or attains its least value nowhere; (b) "
            "numbers of very different sizes; (c) slacks that lie on the boundary between two faces of a cone. Try other units, or "
            "settings of the solver (ti.interop.Clarabel(tol_feas=1e-10))."
        ),
        "NONFINITE": "NaN or Inf in the data. Check them.",
    },
    GIVEN: {
        "CONVERGED": "the Newton correction of the condition at the answer is within the tolerance.",
        "STAGNATED": (
            "as the condition and its Jacobian say, the answer is off by more than the tolerance. "
            "Likely causes: (a) there is no solution, such as a steady state, for these arguments, or the simulator was stopped too "
            "early or cycles; (b) the solver failed, or solves another problem than the condition says; (c) it works to a looser "
            "tolerance: say so with rtol= or atol= of ti.implicit; (d) a jump or a pole of the condition, where it has no root."
        ),
        "NONFINITE": "the solver returned NaN or Inf, or the condition is not finite at its answer. Check the "
        "arguments and the solver.",
        "SINGULAR": (
            "the Jacobian of the condition is singular at the answer or next to it (a multiple root, a fold, fewer "
            "independent equations "
            "than unknowns): how far off the answer is cannot be told, and there is no derivative. Regularise the condition."
        ),
    },
}


def prose(status: str, sought: str) -> str:
    """What is said of the status of that name, of a solve for what a kind of problem calls its solution (:class:`Kind`)."""
    return (
        OTHERS.get(sought.removesuffix(" within bounds").removesuffix(" under constraints"), {}).get(status)
        or ROOT[status]
    )


def failed(sought: str) -> str:
    """What is said first of a solve that failed."""
    return f"The {sought} was not {'accepted' if sought == GIVEN else 'found'}."


def ending(status: str, sought: str, steps: int) -> str:
    """How the solve of a system ended, in a few words."""
    if sought == GIVEN:
        return "no solution" if status == "STAGNATED" else status.lower()
    return f"{status.lower()} after {steps} steps"
