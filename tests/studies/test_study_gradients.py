from keras_resnet.studies.gradients import SCALES, STEPS, STUDY


def rows(**changes):
    """Rows of nets of 14 layers, that is six blocks, whose gradients are known."""
    known = {"plain": 1e-4, "res": 0.5, "he": 0.9, "with": 2.0, "later": 3.0}
    known = {**known, "terms": 1.5, "error": 1e-9, **changes}

    def first(kind, normalised, scale, step):
        if normalised == "with":
            return known["later"] if step else known["with"]
        return known[kind] if scale < 1 else known["he"]

    return [
        {
            "kind": kind, "depth": 14, "seed": seed, "batch_norm": normalised,
            "scale": scale, "step": step, "block": block, "shortcut": known["terms"],
            "gradient": first(kind, normalised, scale, step) if block == 1 else 1.0,
            "branch": 1.0, "kernel": 1.0, "identity_error": known["error"],
        }
        for seed in range(2)
        for kind in ("plain", "res")
        for normalised in ("with", "without")
        for scale in SCALES
        for step in STEPS
        for block in range(1, 7)
    ]  # fmt: skip


def test_each_claim_can_fail():
    assert [holds for _, holds in STUDY.judge(rows())] == [True] * 6
    broken = [
        {"error": 0.1}, {"plain": 0.01}, {"he": 0.01}, {"with": 11}, {"later": 0.09},
        {"terms": 0.9},
    ]  # fmt: skip
    for place, changes in enumerate(broken):
        found = [holds for _, holds in STUDY.judge(rows(**changes))]
        assert found == [other != place for other in range(6)]
    assert not STUDY.judge(rows(res=0.01))[1][1]


def test_a_run_that_blew_up_is_not_drawn():
    lost = {"batch_norm": "without", "scale": SCALES[-1], "step": STEPS[-1]}
    left = [row for row in rows() if not lost.items() <= row.items()]
    lines = [len(STUDY.draw(some).axes[6].lines) for some in (rows(), left)]
    assert lines == [4, 2]
    assert all(holds for _, holds in STUDY.judge(left))
