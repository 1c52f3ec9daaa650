"""Shortcuts preserve the gradient of early layers: d(f(g) + g)/dx = (df/dg + 1) dg/dx.

"Without batch norm" means that its layers are frozen as the identity. He's weights are
the initialisation of arXiv:1502.01852.
"""

import contextlib
import os
import tempfile
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_resnet.studies import lib

SCALES = (0.5, 1.0, 2.0)  # Factors on He's initial weights.
STEPS = (0, 10, 100)  # Numbers of training steps before each measurement.
TERMS = ("shortcut", "branch")
BATCH_NORM = ("with", "without")


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Returns gradient norms by block, and the `identity_error` of the chain rule."""
    batch = options.load().train.take(slice(64))
    probe = lib.GradientProbe(batch, STEPS, job["scale"], job["batch_norm"] == "with")
    scratch = tempfile.TemporaryDirectory()
    # If the loss becomes NaN, the rows that were measured before are returned.
    with scratch as folder, contextlib.suppress(FloatingPointError):
        options.train(
            f"cifar_{job['kind']}net{job['depth']}", job["seed"],
            folder=os.path.join(folder, "run"), callbacks=[probe],
            iterations=STEPS[-1], learning_rate=0.01, schedule="steps", drops=(),
            warmup=0.0, careful_start=False,
        )  # fmt: skip
    error = lib.chain_rule_error(job["seed"])
    return [{**row, "identity_error": error} for row in probe.rows]


def draw(rows: lib.Rows) -> Figure:
    depth = max(lib.distinct_values(rows, "depth"))
    titles = [f"weights {scale:g} times He's" for scale in SCALES]
    figure, grid = lib.new_figure(*titles, "residual, He's weights: both terms", rows=2)

    def line(axes: Axes, column: str, label: str, colour: str, **where: Any) -> None:
        runs = lib.select_runs(rows, column, depth=depth, **where)
        if runs := [run for run in runs if run]:  # Diverged runs have no such row.
            lib.draw_curves(axes, None, runs, label, colour, where["step"] > 0)

    for normalised, (*panels, terms) in zip(BATCH_NORM, grid, strict=True):
        for axes, scale in zip(panels, SCALES, strict=True):
            for kind, (title, colour) in lib.KINDS.items():
                where = {"kind": kind, "batch_norm": normalised, "scale": scale}
                for step, when in ((0, "untrained"), (STEPS[-1], f"{STEPS[-1]} steps")):
                    label = f"{title}, {when}"
                    line(axes, "gradient", label, colour, step=step, **where)
        where = {"kind": "res", "batch_norm": normalised, "scale": 1.0, "step": 0}
        for term, colour in zip(TERMS, lib.COLOURS[3:5], strict=True):
            line(terms, term, f"through the {term}", colour, **where)
        for axes in (*panels, terms):
            axes.set(yscale="log", xlabel=f"block ({depth} layers)")
            lib.add_legends(axes)
        panels[0].set_ylabel(f"{normalised} batch norm\n2-norm of the gradient")
    return figure


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    depth = max(lib.distinct_values(rows, "depth"))
    errors = lib.distinct_values(rows, "identity_error")
    runs = {"depth": depth, "batch_norm": "with", "scale": 1.0, "step": 0}

    def ratio(**where: Any) -> np.ndarray:
        """Returns the gradient at the first over that at the last block, by seed."""
        first, last = (
            lib.select_column(rows, "gradient", **{**runs, "block": block, **where})
            for block in (1, (depth - 2) // 2)
        )
        return np.divide(first, last)

    half, he = {"batch_norm": "without", "scale": SCALES[0]}, {"batch_norm": "without"}
    small = [ratio(kind=kind, **half) for kind in lib.KINDS]
    plain, normal = ratio(kind="plain", **he), [ratio(kind=kind) for kind in lib.KINDS]
    trained = ratio(kind="res", step=STEPS[-1])
    by_term = [lib.select_column(rows, term, kind="res", **runs) for term in TERMS]
    log_ratios = np.log(np.divide(by_term[0], by_term[1]))
    by_seed = log_ratios.reshape(len(lib.distinct_values(rows, "seed")), -1)
    terms = np.exp(by_seed.mean(axis=1))

    def to_text(values: np.ndarray) -> str:
        return lib.mean_and_deviation(values, "")

    def pair_to_text(pair: list[np.ndarray]) -> str:
        return f"plain {to_text(pair[0])}, residual {to_text(pair[1])}"

    def within_ten(*values: np.ndarray) -> bool:
        return all(0.1 < value < 10 for value in np.concatenate(values))

    return [
        (f"largest relative difference {max(errors):.2g}", max(errors) < 1e-6),
        (pair_to_text(small), max(small[0]) < 1e-3 and min(small[1]) > 0.1),
        (f"plain {to_text(plain)}", within_ten(plain)),
        (pair_to_text(normal), within_ten(*normal)),
        (f"residual {to_text(trained)}", within_ten(trained)),
        (f"shortcut's term over branch's term: {to_text(terms)}", min(terms) > 1),
    ]


STUDY = lib.Study(
    name="gradients", title="Gradients",
    claim="The gradient of a block f(g) + g has two terms, (df/dg)(dg/dx) + dg/dx. The second one "
    "contains no weight of f and preserves the gradient of early layers where the first one "
    "vanishes. With batch norm, the paper finds healthy gradients in plain networks too (section "
    "4.1). The figure shows the norm of the gradient at each block's input, before training and "
    "after steps at a learning rate of 0.01; diverged runs are missing. In all expectations except "
    "the first and last one, the gradient is that at the first block over that at the last block.",
    expected=(
        "On a small network, (df/dg)(dg/dx) + dg/dx equals the derivative by finite differences.",
        "Without batch norm and with half of He's weights, the gradient falls below a thousandth "
        "towards the first block in a plain network, but not below a tenth in a residual one.",
        "Without batch norm and with He's weights, the gradient of a plain network stays within a "
        "factor of ten (arXiv:1502.01852).",
        "With batch norm, the gradients of both networks stay within a factor of ten.",
        f"With batch norm and after {STEPS[-1]} steps, the gradient of a residual network stays "
        "within a factor of ten.",
        "In a residual network with batch norm and He's weights, the shortcut's term is larger "
        "than the branch's, in the geometric mean over blocks.",
    ),
    jobs=lib.make_job_grid(
        kind=lib.KINDS, depth=None, seed=None, batch_norm=BATCH_NORM, scale=SCALES
    ),
    measure=measure, draw=draw, check_expectations=check_expectations,
    defaults=lib.Options(depths=(44,)), deepest=362,
    budget=f"{STEPS[-1]} steps with {{images}}{{dataset}}; {{depths}} layers, {{seeds}} seeds",
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
