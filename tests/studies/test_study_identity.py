import dataclasses

from keras_resnet.studies.identity import NETS, STUDY


def rows(start=0.0, further=1.0, plain=90.0):
    """Of nets whose errors are known."""
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
    return [holds for _, holds in STUDY.judge(rows(**changes))]


def test_each_claim_can_fail():
    assert verdicts() == [True] * 4
    assert verdicts(start=1e-9) == [False, True, True, True]
    assert verdicts(further=1.8) == [True, False, True, True]
    assert verdicts(further=2.5) == [True, False, False, True]
    assert verdicts(plain=80.0) == [True, True, True, False]
    STUDY.draw(rows())


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
    found = {row["net"]: row for row in STUDY.measure(options, residual)}
    assert found["start"]["difference"] == 0
    assert found["start"]["test_error"] == found["shallow"]["test_error"]
    assert found["further"]["difference"] > 0
