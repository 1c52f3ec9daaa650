import dataclasses

from keras_resnet.studies.lesion import SHARES, STUDY


def rows(**changes):
    """Of one plain and one residual net of which all is known."""
    known = {
        "plain": {"removed": 80, "swapped": 70, "first": 80, "pruned": 20, "rank": 60},
        "res": {"removed": 3, "swapped": 2, "first": 4, "pruned": 4, "rank": 60},
    }
    for name, value in changes.items():
        kind, what = name.split("_")
        known[kind][what] = value
    return [
        {"kind": kind, "depth": 14, "seed": 0, "what": what, "at": at, "percent": percent,
         "chance": 90}
        for kind, found in known.items()
        for what, percent in {"intact": 1, "untrained": 80, **found}.items()
        for at in (SHARES if what == "pruned" else (0,) if what == "intact" else (1, 2))
    ]  # fmt: skip


def verdicts(**changes):
    return [holds for _, holds in STUDY.judge(rows(**changes))]


def test_each_claim_can_fail():
    assert all(verdicts())
    broken = {
        0: {"res_removed": 7}, 1: {"plain_removed": 40}, 2: {"res_swapped": 70},
        3: {"res_first": 7}, 4: {"res_pruned": 7}, 5: {"res_rank": 80},
    }  # fmt: skip
    for claim, changes in broken.items():
        assert verdicts(**changes) == [place != claim for place in range(6)]
    STUDY.draw(rows())


def test_effective_depth_counts_two_layers_for_each_block():
    seen, _ = STUDY.judge(rows())[3]  # Two blocks of 14 layers: 10 are left.
    assert "plain, 14 layers: 100 % of the layers" in seen
    assert "residual, 14 layers: 71.4 % of the layers" in seen


def test_one_seed_is_measured(tmp_path):
    options = dataclasses.replace(
        STUDY.defaults, depths=(8,), seeds=1, epochs=1, images=200, output=str(tmp_path)
    )
    found = STUDY.measure(options, STUDY.jobs(options)[1])
    assert [row["at"] for row in found if row["what"] == "removed"] == [1]
    assert [row["at"] for row in found if row["what"] == "pruned"] == list(SHARES)
    assert len([row for row in found if row["what"] == "rank"]) == 7
