import csv
import io
import json
import shutil

import pytest
from children import run_child
from conftest import assert_one_line

from keras_resnet import runs
from keras_resnet.support.errors import InputError
from keras_resnet.training import run_folder


@pytest.fixture
def several(trained, tmp_path):
    """Runs: done, better but cut short, hardly begun, damaged twice, and no run."""
    root = tmp_path / "runs"
    record = json.loads((trained / "run.json").read_text("utf-8"))
    header = ",".join(run_folder.COLUMNS)

    def make(name, settings, rows=(), checkpoint=None):
        folder = root / name
        folder.mkdir(parents=True)
        settings = {**record["settings"], **settings}
        text = json.dumps({**record, "settings": settings, "commit": "abc-dirty"})
        (folder / "run.json").write_text(text)
        if rows:
            lines = [f"{i},1,0.5,{loss},{a},0.1" for i, (loss, a) in enumerate(rows, 1)]
            (folder / "metrics.csv").write_text("\n".join([header, *lines]) + "\n")
        if checkpoint:
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "checkpoint").write_text(
                f'model_checkpoint_path: "step-{checkpoint}"\n'
                'all_model_checkpoint_paths: "step-7"\n'
            )
        return folder

    shutil.copytree(trained, root / "done")
    make(
        "deep/cut",
        {"epochs": 5, "seed": 3},
        [(9.5, 0.25), (0.5, 1.0), (2.5, 0.125)],
        70,
    )
    make("begun", {"iterations": 50, "recipe": "finetune"})
    (make("note", {}) / "run.json").write_text("{")
    (make("rows", {}) / "metrics.csv").write_text("epoch,val_accuracy\n1,x\n")
    (root / "thesis").mkdir()
    (root / "done-workers").mkdir()
    (root / "deep" / "cut-find_lr").mkdir()
    return root


def test_list_runs(several, trained):
    found = {run["name"]: run for run in runs.list_runs(several)}
    names = [name.removeprefix(f"{several}/") for name in found]
    assert names == ["deep/cut", "done", "begun", "note", "rows", "thesis"]
    done, cut = found[f"{several}/done"], found[f"{several}/deep/cut"]
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert done["best_accuracy"] == max(float(row["val_accuracy"]) for row in rows)
    assert done["last_accuracy"] == float(rows[-1]["val_accuracy"])
    assert done["last_loss"] == float(rows[-1]["val_loss"])
    assert (done["epochs_done"], done["epochs"], done["state"]) == (8, 8, "done")
    assert done["commit"] == json.loads((trained / "run.json").read_text())["commit"]
    # 1,437 images are 22 batches of 64 and one of 29.
    assert cut == {
        "name": f"{several}/deep/cut", "model": "cifar_resnet8", "dataset": "digits",
        "recipe": "digits", "epochs_done": 3, "epochs": 5, "best_accuracy": 1.0,
        "last_accuracy": 0.125, "last_loss": 2.5, "seed": 3,
        "state": "at step 70 of 115", "commit": "abc-dirty",
    }  # fmt: skip
    begun = found[f"{several}/begun"]
    assert (begun["epochs_done"], begun["epochs"]) == (0, 3)
    assert (begun["state"], begun["best_accuracy"]) == ("at step 0 of 50", None)
    for name, state in (
        ("note", "run.json is damaged"),
        ("rows", "metrics.csv is damaged"),
        ("thesis", "not a run folder"),
    ):
        assert found[f"{several}/{name}"]["state"] == state
    assert runs.list_runs(several / "done") == [done]
    with pytest.raises(InputError, match="There is no folder"):
        runs.list_runs(several / "none")


def test_the_program_that_lists_runs(several, tmp_path):
    result = run_child("keras_resnet.runs", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    header, first, *others = result.stdout.splitlines()
    assert header.split()[:6] == [
        "name",
        "model",
        "dataset",
        "recipe",
        "epochs",
        "best",
    ]
    assert first.split()[:8] == [
        "runs/deep/cut", "cifar_resnet8", "digits", "digits", "3/5", "100.00%",
        "12.50%", "2.5000",
    ]  # fmt: skip
    assert "at step 70 of 115" in first and len(others) == 5

    result = run_child("keras_resnet.runs", "--csv", "runs/done", "runs", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    expected = [
        {k: "" if v is None else str(v) for k, v in run.items()}
        for run in runs.list_runs(several)
    ]
    for row in expected:
        row["name"] = row["name"].replace(str(several), "runs")
    assert rows == expected

    assert_one_line(run_child("keras_resnet.runs", "none", cwd=tmp_path), "'none'")
    shutil.rmtree(several)
    assert_one_line(run_child("keras_resnet.runs", cwd=tmp_path), "There is no folder")
