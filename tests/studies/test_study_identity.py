import dataclasses

from keras_resnet.studies.identity import NETS, STUDY


def make_rows(start_difference=0.0, further_error=1.0, plain_error=90.0):
    """Returns rows for plain and residual networks with known errors in %.

    Args:
        start_difference: Difference between the probabilities of the deepened network
            and the shallow network.
        further_error: Error of the deepened networks after further training.
        plain_error: Error of the deepened plain network before further training.
    """
    errors = {"shallow": 1.0, "start": 1.0, "further": further_error, "scratch": 5.0}
    return [
        {
            "kind": kind, "depth": 8, "to": 14, "seed": 0, "net": net,
            "training_error": plain_error if (kind, net) == ("plain", "start") else errors[net],
            "test_error": errors[net], "difference": start_difference, "chance": 90.0,
        }
        for kind in ("plain", "res")
        for net in NETS
    ]  # fmt: skip


def get_verdicts(**changes):
    return [holds for _, holds in STUDY.check_expectations(make_rows(**changes))]


def test_each_expectation_can_fail():
    assert get_verdicts() == [True] * 4
    assert get_verdicts(start_difference=1e-9) == [False, True, True, True]
    assert get_verdicts(further_error=1.8) == [True, False, True, True]
    assert get_verdicts(further_error=2.5) == [True, False, False, True]
    assert get_verdicts(plain_error=80.0) == [True, True, True, False]
    STUDY.draw(make_rows())


def test_deepening_a_measured_network_does_not_change_its_outputs(tmp_path):
    options = dataclasses.replace(
        STUDY.defaults,
        depths=(8, 14),
        seeds=1,
        epochs=1,
        images=200,
        output=str(tmp_path),
    )
    _, residual_job = sorted(STUDY.list_jobs(options), key=lambda job: job["kind"])
    rows_by_net = {row["net"]: row for row in STUDY.measure(options, residual_job)}
    assert rows_by_net["start"]["difference"] == 0
    assert rows_by_net["start"]["test_error"] == rows_by_net["shallow"]["test_error"]
    assert rows_by_net["further"]["difference"] > 0
