import dataclasses

from keras_resnet.studies.identity import NETS, STUDY


def make_rows(start=0.0, further=1.0, plain=90.0):
    """Returns rows of networks with known errors."""
    errors = {"shallow": 1.0, "start": 1.0, "further": further, "scratch": 5.0}
    return [
        {
            "kind": kind, "depth": 8, "to": 14, "seed": 0, "net": net,
            "training_error": plain if (kind, net) == ("plain", "start") else errors[net],
            "test_error": errors[net], "difference": start, "chance": 90.0,
        }
        for kind in ("plain", "res")
        for net in NETS
    ]  # fmt: skip


def verdicts(**changes):
    return [holds for _, holds in STUDY.check_expectations(make_rows(**changes))]


def test_each_expectation_can_fail():
    assert verdicts() == [True] * 4
    assert verdicts(start=1e-9) == [False, True, True, True]
    assert verdicts(further=1.8) == [True, False, True, True]
    assert verdicts(further=2.5) == [True, False, False, True]
    assert verdicts(plain=80.0) == [True, True, True, False]
    STUDY.draw(make_rows())


def test_one_seed_is_measured(tmp_path):
    options = dataclasses.replace(
        STUDY.defaults,
        depths=(8, 14),
        seeds=1,
        epochs=1,
        images=200,
        output=str(tmp_path),
    )
    _, residual = sorted(STUDY.jobs(options), key=lambda job: job["kind"])
    rows_by_net = {row["net"]: row for row in STUDY.measure(options, residual)}
    assert rows_by_net["start"]["difference"] == 0
    assert rows_by_net["start"]["test_error"] == rows_by_net["shallow"]["test_error"]
    assert rows_by_net["further"]["difference"] > 0
