"""Tests of verdicts and figure. `test_studies.py` runs this study."""

from keras_resnet.studies.schedule import PATIENCES, STUDY


def make_rows(errors, seeds=2):
    """Returns rows of two epochs. `errors` are the training errors of the first epoch.

    `errors` are in % and contain a value for each of PATIENCES.
    """
    return [
        {
            "depth": 20,
            "patience": patience,
            "seed": seed,
            "epoch": epoch,
            "training_error": error / epoch,
            "test_error": 2 * error / epoch,
            "drops": 8 // patience,
        }
        for seed in range(seeds)
        for patience, error in zip(PATIENCES, errors, strict=True)
        for epoch in (1, 2)
    ]


def test_verdicts_follow_from_the_table():
    verdicts = STUDY.check_expectations(make_rows([4, 3, 2, 1]))
    assert [holds for _, holds in verdicts] == [True, True]
    assert "4 ± 0 % (n = 2) with patience 1" in verdicts[0][0]
    assert "8.0 with patience 1" in verdicts[1][0]
    verdicts = STUDY.check_expectations(make_rows([1, 1, 1, 1]))
    assert [holds for _, holds in verdicts] == [False, False]


def test_the_figure_shows_the_test_errors():
    curve_axes, final_axes = STUDY.draw(make_rows([4, 3, 2, 0], seeds=1)).axes
    curves = [[*line.get_ydata()] for line in curve_axes.lines]
    assert curves == [[8, 4], [6, 3], [4, 2], [0, 0]]
    final_errors = final_axes.lines[0]
    assert [*final_errors.get_xdata()] == [1, 2, 4, 8]
    assert [*final_errors.get_ydata()] == [4, 3, 2, 0]
