"""Shortcuts preserve the gradient of early layers: d(f(g) + g)/dx = (df/dg + 1) dg/dx.

In networks "without batch norm", the batch normalisation layers are frozen as the
identity. Kernels have He initialisation (arXiv:1502.01852), multiplied by a scale.
"""

import contextlib
import os
import tempfile
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_resnet.studies import lib

SCALES = (0.5, 1.0, 2.0)  # Factors by which initial kernels are multiplied.
STEPS = (0, 10, 100)  # Training steps after which gradients are measured.
TERMS = ("shortcut", "branch")
BATCH_NORM = ("with", "without")


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Trains a network. Returns gradient norms and the error of the chain rule."""
    batch = options.load().train.take(slice(64))
    probe = lib.GradientProbe(batch, STEPS, job["scale"], job["batch_norm"] == "with")
    scratch_dir = tempfile.TemporaryDirectory()
    # If the loss becomes NaN, training stops and the rows measured so far are returned.
    with scratch_dir as folder, contextlib.suppress(FloatingPointError):
        options.train(
            f"cifar_{job['kind']}net{job['depth']}", job["seed"],
            folder=os.path.join(folder, "run"), callbacks=[probe],
            iterations=STEPS[-1], learning_rate=0.01, schedule="steps", drops=(),
            warmup=0.0, careful_start=False,
        )  # fmt: skip
    chain_rule_error = lib.chain_rule_error(job["seed"])
    return [{**row, "identity_error": chain_rule_error} for row in probe.rows]


def draw(rows: lib.Rows) -> Figure:
    depth = max(lib.distinct_values(rows, "depth"))
    titles = [f"He initialisation times {scale:g}" for scale in SCALES]
    figure, grid = lib.new_figure(*titles, "residual, He init.: both terms", rows=2)

    def plot(axes: Axes, column: str, label: str, colour: str, **where: Any) -> None:
        runs = lib.select_runs(rows, column, depth=depth, **where)
        if runs := [run for run in runs if run]:  # Diverged runs have no row.
            lib.draw_curves(axes, None, runs, label, colour, where["step"] > 0)

    for batch_norm, (*panels, term_panel) in zip(BATCH_NORM, grid, strict=True):
        for axes, scale in zip(panels, SCALES, strict=True):
            for kind, (title, colour) in lib.KINDS.items():
                where = {"kind": kind, "batch_norm": batch_norm, "scale": scale}
                for step, text in ((0, "untrained"), (STEPS[-1], f"{STEPS[-1]} steps")):
                    label = f"{title}, {text}"
                    plot(axes, "gradient", label, colour, step=step, **where)
        where = {"kind": "res", "batch_norm": batch_norm, "scale": 1.0, "step": 0}
        for term, colour in zip(TERMS, lib.COLOURS[3:5], strict=True):
            plot(term_panel, term, f"through the {term}", colour, **where)
        for axes in (*panels, term_panel):
            axes.set(yscale="log", xlabel=f"block ({depth} layers)")
            lib.add_legends(axes)
        panels[0].set_ylabel(f"{batch_norm} batch norm\n2-norm of the gradient")
    return figure


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    depth = max(lib.distinct_values(rows, "depth"))
    max_error = max(lib.distinct_values(rows, "identity_error"))
    defaults = {"depth": depth, "batch_norm": "with", "scale": 1.0, "step": 0}

    def compute_ratios(**where: Any) -> np.ndarray:
        """Returns the ratio of the first to the last block's gradient for each seed."""
        first_gradients, last_gradients = (
            lib.select_column(rows, "gradient", **{**defaults, "block": block, **where})
            for block in (1, (depth - 2) // 2)
        )
        return np.divide(first_gradients, last_gradients)

    half_scale = {"batch_norm": "without", "scale": SCALES[0]}
    half_ratios = [compute_ratios(kind=kind, **half_scale) for kind in lib.KINDS]
    plain_ratios, res_ratios = half_ratios
    he_ratios = compute_ratios(kind="plain", batch_norm="without")
    norm_ratios = [compute_ratios(kind=kind) for kind in lib.KINDS]
    trained_ratios = compute_ratios(kind="res", step=STEPS[-1])
    norms = [lib.select_column(rows, term, kind="res", **defaults) for term in TERMS]
    log_ratios = np.log(np.divide(norms[0], norms[1]))
    seed_log_ratios = log_ratios.reshape(len(lib.distinct_values(rows, "seed")), -1)
    ratios = np.exp(seed_log_ratios.mean(axis=1))

    def to_text(values: np.ndarray) -> str:
        return lib.format_mean(values, "")

    def pair_to_text(ratios: list[np.ndarray]) -> str:
        return f"plain {to_text(ratios[0])}, residual {to_text(ratios[1])}"

    def are_within_ten(*values: np.ndarray) -> bool:
        return all(0.1 < value < 10 for value in np.concatenate(values))

    return [
        (f"largest relative difference {max_error:.2g}", max_error < 1e-6),
        (pair_to_text(half_ratios), max(plain_ratios) < 1e-3 and min(res_ratios) > 0.1),
        (f"plain {to_text(he_ratios)}", are_within_ten(he_ratios)),
        (pair_to_text(norm_ratios), are_within_ten(*norm_ratios)),
        (f"residual {to_text(trained_ratios)}", are_within_ten(trained_ratios)),
        (f"shortcut's term over branch's term: {to_text(ratios)}", min(ratios) > 1),
    ]


STUDY = lib.Study(
    name="gradients", title="Gradients",
    claim="The gradient of a block f(g) + g has two terms, (df/dg)(dg/dx) + dg/dx. The second one "
    "contains no weight of f and preserves the gradient of early layers where the first one "
    "vanishes. With batch norm, the paper finds healthy gradients in plain networks too (section "
    "4.1). The figure shows the norm of the gradient at each block's input, before training and "
    "after steps with a learning rate of 0.01; diverged runs are missing. In all expectations but "
    "the first and last, the gradient at the first block is divided by the one at the last block.",
    expectations=(
        "On a small network, (df/dg)(dg/dx) + dg/dx equals the derivative by finite differences.",
        "Without batch norm and with He initialisation scaled by 0.5, the gradient falls below a "
        "thousandth in a plain network, but not below a tenth in a residual network.",
        "Without batch norm and with He initialisation, the gradient of a plain network stays "
        "within a factor of ten (arXiv:1502.01852).",
        "With batch norm, the gradients of both networks stay within a factor of ten.",
        f"With batch norm and after {STEPS[-1]} steps, the gradient of a residual network stays "
        "within a factor of ten.",
        "In a residual network with batch norm and He initialisation, the shortcut's term is "
        "larger than the branch's, in the geometric mean over blocks.",
    ),
    list_jobs=lib.make_job_lister(
        kind=lib.KINDS, depth=None, seed=None, batch_norm=BATCH_NORM, scale=SCALES
    ),
    measure=measure, draw=draw, check_expectations=check_expectations,
    defaults=lib.Options(depths=(44,)), max_depth=362,
    settings=f"{STEPS[-1]} steps with {{images}}{{dataset}}; {{depths}} layers, {{seeds}} seeds",
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
