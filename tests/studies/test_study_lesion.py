import dataclasses

from keras_resnet.studies.lesion import SPARSITY, STUDY


def make_rows(**changes):
    """Returns rows of a plain and a residual network with known percentages.

    `changes` replaces percentages. For example, `res_removed=7` sets the error of the
    residual network without one block to 7 %.
    """
    percentages = {
        "plain": {"removed": 80, "swapped": 70, "first": 80, "pruned": 20, "rank": 60},
        "res": {"removed": 3, "swapped": 2, "first": 4, "pruned": 4, "rank": 60},
    }
    for changed_name, value in changes.items():
        kind, series = changed_name.split("_")
        percentages[kind][series] = value
    return [
        {"kind": kind, "depth": 14, "seed": 0, "what": series, "at": x, "percent": percent,
         "chance": 90}
        for kind, values in percentages.items()
        for series, percent in {"intact": 1, "untrained": 80, **values}.items()
        for x in (SPARSITY if series == "pruned" else (0,) if series == "intact" else (1, 2))
    ]  # fmt: skip


def get_verdicts(**changes):
    return [holds for _, holds in STUDY.check_expectations(make_rows(**changes))]


def test_each_expectation_can_fail():
    assert all(get_verdicts())
    failing_changes = {
        0: {"res_removed": 7}, 1: {"plain_removed": 40}, 2: {"res_swapped": 70},
        3: {"res_first": 7}, 4: {"res_pruned": 7}, 5: {"res_rank": 80},
    }  # fmt: skip
    for index, changes in failing_changes.items():
        assert get_verdicts(**changes) == [i != index for i in range(6)]
    STUDY.draw(make_rows())


def test_effective_depth_counts_two_layers_for_each_block():
    # Two blocks of two layers can be removed, so 10 of 14 layers (71.4 %) remain.
    result, _ = STUDY.check_expectations(make_rows())[3]
    assert "plain, 14 layers: 100 % of the layers" in result
    assert "residual, 14 layers: 71.4 % of the layers" in result


def test_a_measured_network_has_rows_for_each_lesion(tmp_path):
    options = dataclasses.replace(
        STUDY.defaults, depths=(8,), seeds=1, epochs=1, images=200, output=str(tmp_path)
    )
    rows = STUDY.measure(options, STUDY.list_jobs(options)[1])
    assert [row["at"] for row in rows if row["what"] == "removed"] == [1]
    assert [row["at"] for row in rows if row["what"] == "pruned"] == list(SPARSITY)
    assert len([row for row in rows if row["what"] == "rank"]) == 7
