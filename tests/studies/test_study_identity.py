import json

from keras_resnet.studies.identity import NETS, STUDY
from keras_resnet.studies.lib.study import Options


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


def test_the_figure_shows_the_errors_of_each_network():
    training_axes, test_axes = STUDY.draw(make_rows()).axes
    plain_line, residual_line = [
        line
        for line in training_axes.lines
        if line.get_label() in ("plain", "residual")
    ]
    assert [*plain_line.get_ydata()] == [1, 90, 1, 5]
    assert [*residual_line.get_ydata()] == [1, 1, 1, 5]
    assert [*test_axes.lines[0].get_ydata()] == [1, 1, 1, 5]
    assert [*training_axes.lines[-1].get_ydata()] == [90, 90]  # Chance level.


def test_deepening_a_trained_network_does_not_change_its_outputs(
    trained_run, monkeypatch, tmp_path
):
    original_train = Options.train

    models = []

    def train(self, model, seed, **changes):
        """Trains the deepened network. Other networks have been trained before."""
        models.append(model)
        if changes:
            return original_train(self, model, seed, **changes)
        return str(trained_run)

    monkeypatch.setattr(Options, "train", train)
    options = Options(images=100, epochs=1, output=str(tmp_path))
    job = {"kind": "res", "depth": 8, "to": 14, "seed": 0}
    run_folder = tmp_path / "digits-images-100/runs"
    run_folder.mkdir(parents=True)
    rows_by_net = {row["net"]: row for row in STUDY.measure(options, job)}
    assert models == ["cifar_resnet8", "cifar_resnet14", "cifar_resnet14"]
    shallow_row, start_row = rows_by_net["shallow"], rows_by_net["start"]
    assert shallow_row["training_error"] < 20 and shallow_row["chance"] > 80
    assert start_row == {**shallow_row, "net": "start"}
    assert rows_by_net["further"]["difference"] > 0
    (record,) = run_folder.glob("deepened-kind-res-depth-8-to-14-*/run.json")
    settings = json.loads(record.read_text())["settings"]
    assert (settings["model"], settings["learning_rate"]) == ("cifar_resnet14", 0.01)
    assert settings["weights"] == f"{record.parent}.keras"
