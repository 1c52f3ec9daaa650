"""Shortcuts keep the gradient of early layers alive: d(f(g) + g)/dx = (df/dg + 1) dg/dx.

"Without batch norm" its layers pass on what they read; He's weights: arXiv:1502.01852.
"""

import contextlib
import os
import tempfile
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_resnet.studies import lib

SCALES = (0.5, 1.0, 2.0)  # Of the initial weights, as shares of He's.
STEPS = (0, 10, 100)
TERMS = ("shortcut", "branch")
BATCH_NORM = ("with", "without")


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Norms of gradients by block, before and while training at a constant rate.

    With each goes the `identity_error` of the chain rule on a small net.
    """
    batch = options.load().train.take(slice(64))
    probe = lib.GradientProbe(batch, STEPS, job["scale"], job["batch_norm"] == "with")
    scratch = tempfile.TemporaryDirectory()
    # A run that blows up leaves the rows up to there.
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
    figure, grid = lib.new_figure(*titles, "residual, He's: the two terms", rows=2)

    def line(axes: Axes, column: str, label: str, colour: str, **where: Any) -> None:
        runs = lib.select_runs(rows, column, depth=depth, **where)
        if runs := [run for run in runs if run]:  # Some blew up before.
            lib.draw_curves(axes, None, runs, label, colour, where["step"] > 0)

    for normalised, (*whole, terms) in zip(BATCH_NORM, grid, strict=True):
        for axes, scale in zip(whole, SCALES, strict=True):
            for kind, (title, colour) in lib.KINDS.items():
                where = {"kind": kind, "batch_norm": normalised, "scale": scale}
                for step, when in ((0, "before"), (STEPS[-1], f"{STEPS[-1]} steps")):
                    label = f"{title}, {when}"
                    line(axes, "gradient", label, colour, step=step, **where)
        where = {"kind": "res", "batch_norm": normalised, "scale": 1.0, "step": 0}
        for term, colour in zip(TERMS, lib.COLOURS[3:5], strict=True):
            line(terms, term, f"through the {term}", colour, **where)
        for axes in (*whole, terms):
            axes.set(yscale="log", xlabel=f"block of {depth} layers, first to last")
            lib.add_legends(axes)
        whole[0].set_ylabel(f"{normalised} batch norm\n2-norm of the gradient")
    return figure


def judge(rows: lib.Rows) -> list[lib.Verdict]:
    depth = max(lib.distinct_values(rows, "depth"))
    errors = lib.distinct_values(rows, "identity_error")
    runs = {"depth": depth, "batch_norm": "with", "scale": 1.0, "step": 0}

    def kept(**where: Any) -> np.ndarray:
        """Gradient at the first block, as a share of that at the last; each seed's."""
        first, last = (
            lib.select_column(rows, "gradient", **{**runs, "block": block, **where})
            for block in (1, (depth - 2) // 2)
        )
        return np.divide(first, last)

    half, he = {"batch_norm": "without", "scale": SCALES[0]}, {"batch_norm": "without"}
    small = [kept(kind=kind, **half) for kind in lib.KINDS]
    bare, normal = kept(kind="plain", **he), [kept(kind=kind) for kind in lib.KINDS]
    trained = kept(kind="res", step=STEPS[-1])
    by_term = [lib.select_column(rows, term, kind="res", **runs) for term in TERMS]
    ratios = np.log(np.divide(by_term[0], by_term[1]))
    by_seed = ratios.reshape(len(lib.distinct_values(rows, "seed")), -1)
    terms = np.exp(by_seed.mean(axis=1))

    def words(shares: np.ndarray) -> str:
        return lib.mean_and_deviation(shares, "")

    def both(pair: list[np.ndarray]) -> str:
        return f"plain {words(pair[0])}, residual {words(pair[1])}"

    def healthy(*shares: np.ndarray) -> bool:
        return all(0.1 < share < 10 for share in np.concatenate(shares))

    return [
        (f"largest relative difference {max(errors):.2g}", max(errors) < 1e-6),
        (both(small), max(small[0]) < 1e-3 and min(small[1]) > 0.1),
        (f"plain {words(bare)}", healthy(bare)),
        (both(normal), healthy(*normal)),
        (f"residual {words(trained)}", healthy(trained)),
        (f"shortcut's over branch's: {words(terms)}", min(terms) > 1),
    ]


STUDY = lib.Study(
    name="gradients", title="Gradients",
    claim="A block that gives f(g) + g hands back a gradient of two terms, "
    "(df/dg)(dg/dx) + dg/dx. The second holds no weight of f: where the first vanishes, "
    "it keeps the gradient of early layers alive. With batch norm, the paper finds, plain "
    "nets' gradients are healthy too (section 4.1). Shown is the norm of the gradient by "
    "what each block reads, before training and after steps at a rate of 0.01; a line that "
    "is missing blew up. Judged is that of the first block over that of the last.",
    expected=(
        "on a small net, (df/dg)(dg/dx) + dg/dx is the derivative found by differences",
        "without batch norm and with half of He's weights, a plain net's gradient falls "
        "below a thousandth towards the first block, a residual net's not below a tenth",
        "with He's own a plain net's stays within a factor of ten (arXiv:1502.01852)",
        "with batch norm, both nets' do",
        f"with batch norm after {STEPS[-1]} steps, a residual net's does",
        "of the two terms in a residual net with batch norm and He's weights, the "
        "shortcut's is the larger in the geometric mean over blocks",
    ),
    jobs=lib.combine(
        kind=lib.KINDS, depth=None, seed=None, batch_norm=BATCH_NORM, scale=SCALES
    ),
    measure=measure, draw=draw, judge=judge,
    defaults=lib.Options(depths=(44,)), deepest=362,
    budget=f"{STEPS[-1]} steps with {{images}}{{dataset}}; {{depths}} layers, {{seeds}} seeds",
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
