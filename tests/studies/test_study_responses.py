import pytest

from keras_resnet.studies.responses import STUDY


def make_rows(plain_means, residual_means):
    """Returns rows of networks with two layers for two seeds.

    The arguments map each depth to the mean standard deviation over both layers.
    """
    return [
        {"kind": kind, "depth": depth, "seed": seed, "layer": layer,
         "deviation": mean + (0.1 if layer == 1 else -0.1)}
        for seed in range(2)
        for kind, means in (("plain", plain_means), ("res", residual_means))
        for depth, mean in means.items()
        for layer in (1, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("plain_means", "residual_means", "holds"),
    [
        ({8: 1.0, 20: 1.0}, {8: 0.9, 20: 0.8}, [True, True]),
        ({8: 1.0, 20: 0.8}, {8: 0.9, 20: 0.8}, [False, True]),
        ({8: 1.0, 20: 1.0}, {8: 0.8, 20: 0.9}, [True, False]),
    ],
)
def test_verdicts_follow_from_the_table(plain_means, residual_means, holds):
    verdicts = STUDY.check_expectations(make_rows(plain_means, residual_means))
    assert [verdict for _, verdict in verdicts] == holds


def test_the_right_panel_is_sorted_by_magnitude():
    rows = make_rows({8: 1.0}, {8: 0.9})
    for row in rows:
        # Swaps the values, so that layer 2 has a larger deviation than layer 1.
        row["deviation"] = 2.0 - row["deviation"]
    in_order, by_magnitude = STUDY.draw(rows).axes
    assert list(in_order.lines[0].get_ydata()) == pytest.approx([0.9, 1.1])
    assert list(by_magnitude.lines[0].get_ydata()) == pytest.approx([1.1, 0.9])
