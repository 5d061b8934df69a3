"""The report: one HTML file with everything in it, in the order in which the subject is taught."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from torchimplicit.demo import figures, tables
from torchimplicit.demo.page import equation, fact, page, plots, table
from torchimplicit.demo.tables import duration, number, size

if TYPE_CHECKING:
    from torchimplicit.demo.claims import SideBySide
    from torchimplicit.demo.measurements import Measurements


def html(m: Measurements) -> str:
    """The whole page."""
    return page(
        "Backpropagation with implicit layers, measured",
        head(m),
        training(m),
        forward(m),
        explicit(m),
        implicit(m),
        theorem(m),
        considerations(m),
        sizes(m),
        foot(m),
    )


def head(m: Measurements) -> str:
    e, i, blown = m.equilibrium.explicit[-1], m.equilibrium.implicit[-1], m.exploding[-1]
    tests = len(m.trained.digits.test_labels)
    facts = (
        fact(
            f"{m.trained.accuracy:.1%}",
            f"of {tests} test digits right, after {duration(m.trained.seconds)} of training with implicit gradients",
        ),
        fact(
            f"{e.saved_bytes / i.saved_bytes:.0f} ×",
            f"less kept for the backward pass at {e.steps} forward steps: "
            f"{size(i.saved_bytes)} instead of {size(e.saved_bytes)}",
        ),
        fact(
            f"{e.backward_seconds / i.backward_seconds:.1f} ×",
            f"faster backward at {e.steps} forward steps: "
            f"{duration(i.backward_seconds)} instead of {duration(e.backward_seconds)}",
        ),
        fact(
            number(blown.explicit),
            f"is the explicit gradient of an expanding layer after {blown.steps} steps; "
            f"the implicit one is {number(blown.implicit)}, and right",
        ),
    )
    return f"""<h1>Backpropagation with implicit layers, measured</h1>
<p class="lead">An implicit layer is defined by a condition on its output, not by a recipe. This page trains a
classifier around one such layer and then measures, on that layer and on three small ones, what is said of
differentiating them: <span class="explicit">explicitly</span>, through every step of the solver, and
<span class="implicit">implicitly</span>, by the implicit function theorem.</p>
<div class="facts">{"".join(facts)}</div>"""


def training(m: Measurements) -> str:
    history = m.trained.history
    steps, images = m.solver_steps, m.trained.digits.test_images
    order = sorted(range(len(steps)), key=lambda i: steps[i])

    def strip(chosen: list[int]) -> str:
        return (
            '<div class="digits">'
            + "".join(
                f"<figure>{figures.digit(images[i, 0].tolist())}<figcaption>{steps[i]}</figcaption></figure>"
                for i in chosen
            )
            + "</div>"
        )

    return f"""<h2>A network with one implicit layer</h2>
<p>The data are scikit-learn's 1,797 handwritten digits, 8 by 8 pixels, a quarter of them kept for the test. An encoder
turns an image into <i>u</i>; the features are the fixed point of one convolutional cell; a linear head reads them.</p>
{equation("z* = <b>tanh</b>(w ∗ z* + b + u)")}
<p>Such a network has no depth of its own. The solver takes as many steps as the image in hand needs, and the gradient
comes from the fixed point alone.</p>
{plots(figures.loss(history), figures.accuracy(history), figures.training_steps(history), figures.image_steps(steps))}
<p>The six test images that took the fewest steps, and the six that took the most, with their numbers of steps:</p>
{strip(order[:6])}{strip(order[-6:])}"""


def forward(m: Measurements) -> str:
    fixed_point = {name: m.residuals[name] for name in ("plain steps", "Anderson")}
    return f"""<h2>1 · Forward: a solver finds the output</h2>
<p>The output <i>z</i>* of an implicit layer solves an equation; a solver finds it by repeated updates, Newton's method
for one.</p>
{equation("g(x, z*) = 0", "z ← z − (∂g/∂z)⁻¹ g(x, z)")}
<p>First the trained layer, where <i>g</i> = <i>f</i> − <i>z</i>: plain steps gain a constant factor each, Anderson's
mixing of the last few steps gets there sooner. Then sixty-four systems of twelve coupled equations, <i>z</i> +
½(<i>Az</i>)³ + ¼ exp(<i>Bz</i>) = <i>x</i>, where Newton's method doubles the number of right digits with every step.
Shown is the worst residual of the batch.</p>
{
        plots(
            figures.residuals("Residual, trained layer", fixed_point),
            figures.residuals("Residual, Newton's method", {"Newton": m.residuals["Newton"]}),
        )
    }"""


def crossing(comparison: SideBySide) -> str:
    """From how many steps on the implicit backward pass is the faster one."""
    for e, i in zip(comparison.explicit, comparison.implicit):
        if e.backward_seconds > i.backward_seconds:
            return f"is the faster one from {e.steps} forward steps on"
    return "is not the faster one for any of these numbers of steps"


def explicit(m: Measurements) -> str:
    return f"""<h2>2 · The naive way: the chain rule through every step</h2>
<p>Automatic differentiation can go back through all the updates. Then every step's intermediate values are stored, and
every step is paid for a second time. Both grow with the number of steps; differentiating implicitly, neither does.</p>
{
        plots(
            figures.compare("Kept for the backward pass", m.equilibrium, lambda run: run.saved_bytes, unit=size),
            figures.compare(
                "Time of the backward pass", m.equilibrium, lambda run: run.backward_seconds, unit=duration
            ),
            figures.compare("Gradient error, relative", m.equilibrium, lambda run: run.error),
            figures.compare("Norm of the gradient", m.equilibrium, lambda run: run.norm, log="x"),
        )
    }
<p>These are for the trained layer ({m.equilibrium.batch} images, {m.equilibrium.unknowns} unknowns each), solved by
exactly so many plain steps. The error is that of the float32 gradient in <i>u</i>, <i>w</i> and <i>b</i>, relative to a
float64 one which agrees with finite differences to {
        number(m.equilibrium.reference_error)
    }. Few steps are not a fixed point:
there the theorem does not yet apply, and both gradients are those of an unfinished solve. The implicit backward pass
costs one linear solve however many steps came before; it {crossing(m.equilibrium)}.</p>
{table(tables.side_by_side("The trained layer", m.equilibrium))}
<p>For Newton's method the steps are dear, each with a Jacobian of its own, and the explicit way stores them all.
({m.newton.batch} systems of {m.newton.unknowns} unknowns; the reference agrees with finite differences to
{number(m.newton.reference_error)}.)</p>
{
        plots(
            figures.compare("Newton: kept for the backward pass", m.newton, lambda run: run.saved_bytes, unit=size),
            figures.compare(
                "Newton: time of the backward pass", m.newton, lambda run: run.backward_seconds, unit=duration
            ),
            figures.compare("Newton: gradient error, relative", m.newton, lambda run: run.error),
            figures.compare("Newton: norm of the gradient", m.newton, lambda run: run.norm, log="x"),
        )
    }
{table(tables.side_by_side("The Newton layer", m.newton))}
<h3>Vanishing and exploding</h3>
<p>The chain rule multiplies the Jacobians of all the steps. Below, the recurrent layer <i>z</i> ← tanh(<i>γWz</i> +
<i>x</i>) with 64 units. With a gain <i>γ</i> of 0.8 its steps contract, and what the first of them did is lost: the
product d<i>ℓ</i>/d<i>z</i>₀ vanishes. With 2.5 they expand: the plain iteration never settles, and its gradient
explodes, although a root is there. Newton's method finds it, and the implicit gradient at the root has its ordinary
size.</p>
{equation("dℓ/dz₀ = dℓ/dz<sub>k</sub> · J<sub>k</sub> J<sub>k−1</sub> ⋯ J₁")}
{
        plots(
            figures.products("Vanishing: gain 0.8, |gradient|", m.vanishing),
            figures.products("Exploding: gain 2.5, |gradient|", m.exploding),
        )
    }
{table(tables.long_products(m.vanishing, m.exploding))}"""


def implicit(m: Measurements) -> str:
    t = m.two_terms
    return f"""<h2>3 · Implicit differentiation: two terms that cancel</h2>
<p>At the root the condition holds for every <i>x</i>, so its derivative in <i>x</i> is zero. It has two terms, one with
<i>z</i>* held fixed and one with <i>x</i> held fixed. Both partial derivatives come from automatic differentiation of
one evaluation of <i>g</i> at the <i>z</i>* that the solver found; how it was found no longer matters.</p>
{equation("∂g/∂x + (∂g/∂z*)(∂z*/∂x) = 0", "<b>hence</b>", "∂z*/∂x = −(∂g/∂z*)⁻¹ ∂g/∂x")}
<div class="facts">
{fact(number(t.held_z), "|∂g/∂x|, with z* held fixed")}
{fact(number(t.held_x), "|(∂g/∂z*)(∂z*/∂x)|, with x held fixed")}
{fact(number(t.sum), "norm of their sum, in float64")}
{fact(number(t.derivative_error), "relative difference of ∂z*/∂x from finite differences of the solution")}
</div>"""


def theorem(m: Measurements) -> str:
    return f"""<h2>4 · The implicit function theorem, and where it ends</h2>
<p>If <i>g</i> is continuously differentiable and its Jacobian in <i>z</i> is not singular at a root, then there is one
continuous <i>z</i>*(<i>x</i>) near it. Two equations in two unknowns, <i>z</i>₁² + ½<i>z</i>₂ = <i>x</i> and
<i>z</i>₂ = ⅓<i>z</i>₁³, have two roots that meet as <i>x</i> goes to 0. On the way the smallest singular value of the
Jacobian goes to 0 and the gradient to infinity; at 0 there is no gradient, and that is seen and said.</p>
{plots(figures.fold(m.fold))}
{table(tables.fold(m.fold))}
<p>What is said there:</p>
<blockquote>{escape(m.fold[-1].said)}</blockquote>"""


def considerations(m: Measurements) -> str:
    return f"""<h2>5 · Things to consider</h2>
<h3>The inverse is never computed</h3>
<p>The backward pass solves one linear system with the transposed Jacobian, by iterations that need only its products
with vectors. The Neumann series, a fixed number of terms, is the one that may stop short.</p>
{table(tables.backward_solvers(m.backward_solvers))}
<h3>The same Jacobian serves forward and backward</h3>
<p>Newton's method has factorised ∂<i>g</i>/∂<i>z</i> already. Transposed, the factors solve the backward system too,
to the tolerance asked for: they come from the last step before the root, so the solution is refined with a few
products.</p>
{table(tables.reuse(m.reuse))}
<h3>It does not matter which algorithm found the root</h3>
<p>The gradient belongs to the condition, not to the solver. In float64, from six solvers, one of them compiled Fortran
that automatic differentiation cannot see:</p>
{table(tables.root_finders(m.root_finders))}"""


def sizes(m: Measurements) -> str:
    e = m.equilibrium
    parameters = 9 * 24 * 24 + 24
    full = 4 * e.batch * e.unknowns * (e.unknowns + parameters)
    return f"""<h2>6 · What the backward pass is made of</h2>
<p>For a loss <i>ℓ</i>, neither ∂<i>z</i>*/∂<i>x</i> nor ∂<i>g</i>/∂<i>z</i>* nor its inverse is needed in full. One
linear solve finds <i>u</i>, one vector-Jacobian product ends it.</p>
{equation("(∂g/∂z*)ᵀ u = (∂ℓ/∂z*)ᵀ", "∂ℓ/∂x = −uᵀ ∂g/∂x")}
<div class="facts">
{fact(size(e.jacobian_bytes), f"would hold ∂g/∂z*, {e.unknowns} × {e.unknowns} for each of {e.batch} images")}
{fact(size(full), "with the derivative of z* in the cell's parameters")}
{fact(size(e.implicit[-1].saved_bytes), "is what was kept between forward and backward")}
</div>"""


def foot(m: Measurements) -> str:
    return f"""<footer><p>Made by <code>torchimplicit demo{" --quick" if m.quick else ""} --seed {m.seed}</code> in
{duration(m.seconds)} on {escape(m.machine)}. Times are medians of {3 if m.quick else 5}. What is kept for the
backward pass is all storage made by the forward pass and still alive after it.</p></footer>"""
