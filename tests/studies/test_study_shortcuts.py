import pytest

from keras_resnet.studies.lib.study import Options
from keras_resnet.studies.shortcuts import KINDS, STUDY


def make_rows(*errors):
    return [
        {"shortcut": kind, "depth": depth, "seed": seed, "epoch": 24,
         "training_error": error, "test_error": error if depth == 34 else 0}
        for seed in range(2)
        for depth in (18, 34)
        for kind, error in zip(KINDS, errors, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "holds"),
    [
        # Errors of the paper's Table 3 (ImageNet, top-1, 10-crop): plain, A, B, C.
        ((28.54, 25.03, 24.52, 24.19), [True, True]),
        ((25.50, 25.03, 24.52, 24.19), [True, False]),
        ((25.00, 25.03, 24.52, 24.19), [False, False]),
    ],
)
def test_verdicts_of_known_tables(errors, holds):
    verdicts = STUDY.check_expectations(make_rows(*errors))
    assert [verdict for _, verdict in verdicts] == holds
    assert STUDY.draw(make_rows(*errors))


def test_networks_that_are_trained(monkeypatch):
    calls = []

    def train(self, model, seed, **changes):
        calls.append((model, changes))
        raise KeyboardInterrupt

    monkeypatch.setattr(Options, "train", train)
    for job in STUDY.jobs(Options(depths=(8,), seeds=1)):
        with pytest.raises(KeyboardInterrupt):
            STUDY.measure(Options(), job)
    # Without shortcut and with A, the networks are unchanged, as in other studies.
    assert calls == [
        ("cifar_plainnet8", {}), ("cifar_resnet8", {}),
        ("cifar_resnet8", {"shortcut": "B"}), ("cifar_resnet8", {"shortcut": "C"}),
    ]  # fmt: skip
