import pytest

from keras_resnet.studies.lib.study import Options
from keras_resnet.studies.shortcuts import SHORTCUTS, STUDY


def make_rows(*errors):
    """Returns rows of two depths and two seeds. `errors` (%) has one value per shortcut."""
    return [
        {"shortcut": shortcut, "depth": depth, "seed": seed, "epoch": 24,
         "training_error": error, "test_error": error if depth == 34 else 0}
        for seed in range(2)
        for depth in (18, 34)
        for shortcut, error in zip(SHORTCUTS, errors, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "holds"),
    [
        # Top-1 errors in % of 10-crop tests on ImageNet, from Table 3 of the paper. The
        # first network has no shortcuts, the others have shortcuts A, B and C.
        ((28.54, 25.03, 24.52, 24.19), [True, True]),
        ((25.50, 25.03, 24.52, 24.19), [True, False]),
        ((25.00, 25.03, 24.52, 24.19), [False, False]),
    ],
)
def test_verdicts_follow_from_the_table(errors, holds):
    verdicts = STUDY.check_expectations(make_rows(*errors))
    assert [verdict for _, verdict in verdicts] == holds


def test_the_figure_shows_the_errors_of_each_shortcut():
    # Table 3 of the paper.
    training_axes, test_axes = STUDY.draw(make_rows(28.54, 25.03, 24.52, 24.19)).axes
    for axes, shallow_errors in (
        (training_axes, [28.54, 25.03, 24.52, 24.19]),
        (test_axes, [0] * 4),
    ):
        means = [line for line in axes.lines if len(line.get_xdata()) == len(SHORTCUTS)]
        assert [line.get_label() for line in means] == ["18 layers", "34 layers"]
        shallow_line, deep_line = means
        assert [*shallow_line.get_xdata()] == ["none", "A", "B", "C"]
        assert [*shallow_line.get_ydata()] == shallow_errors
        assert [*deep_line.get_ydata()] == [28.54, 25.03, 24.52, 24.19]


def test_each_shortcut_trains_the_matching_variant(trained_run, monkeypatch):
    training_calls = []

    def train(self, model, seed, **changes):
        training_calls.append((model, changes))
        return str(trained_run)

    monkeypatch.setattr(Options, "train", train)
    rows = [
        row
        for job in STUDY.list_jobs(Options(depths=(8,), seeds=1))
        for row in STUDY.measure(Options(), job)
    ]
    # Networks without a shortcut or with shortcut A are trained with default arguments,
    # so that other studies can use the same run folders.
    assert training_calls == [
        ("cifar_plainnet8", {}), ("cifar_resnet8", {}),
        ("cifar_resnet8", {"shortcut": "B"}), ("cifar_resnet8", {"shortcut": "C"}),
    ]  # fmt: skip
    assert [row["epoch"] for row in rows] == [8] * 4  # The last of eight epochs.
