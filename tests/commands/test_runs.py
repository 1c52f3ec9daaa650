"""The command that lists run folders."""

import csv
import io
import json
import os
import random
import shutil
import time

import grammars
import pytest
from children import run_child
from conftest import assert_one_line, make_deep_folder

from keras_resnet import runs
from keras_resnet.support import to_csv
from keras_resnet.support.errors import InputError
from keras_resnet.training import run_folder


@pytest.fixture
def runs_folder(trained_run, tmp_path):
    """Folder that contains runs in all states, and folders without a run."""
    root = tmp_path / "runs"
    record = json.loads((trained_run / "run.json").read_text("utf-8"))
    header = ",".join(run_folder.COLUMNS)

    def make_run(name, settings, rows=(), checkpoint_step=None):
        folder = root / name
        folder.mkdir(parents=True)
        settings = {**record["settings"], **settings}
        text = json.dumps({**record, "settings": settings, "commit": "abc-dirty"})
        (folder / "run.json").write_text(text)
        if rows:
            lines = [
                f"{epoch},1,0.5,{loss},{accuracy},0.1"
                for epoch, (loss, accuracy) in enumerate(rows, 1)
            ]
            (folder / "metrics.csv").write_text("\n".join([header, *lines]) + "\n")
        if checkpoint_step:
            for step in (checkpoint_step, 9):
                (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
        return folder

    shutil.copytree(trained_run, root / "done")
    make_run(
        "deep/interrupted",
        {"epochs": 5, "seed": 3},
        [(9.5, 0.25), (0.5, 1.0), (2.5, 0.125)],
        70,
    )
    make_run("started", {"iterations": 50, "recipe": "finetune"})
    (make_run("bad_record", {}) / "run.json").write_text("{")
    (make_run("bad_metrics", {}) / "metrics.csv").write_text(
        "epoch,val_accuracy\n1,x\n"
    )
    (root / "thesis").mkdir()
    (root / "done-workers").mkdir()
    (root / "deep" / "interrupted-find_lr").mkdir()
    return root


def test_runs_are_listed_with_their_results_and_state(runs_folder, trained_run):
    runs_by_name = {run["name"]: run for run in runs.list_runs(runs_folder)}
    names = [name.removeprefix(f"{runs_folder}/") for name in runs_by_name]
    assert names[:3] == ["deep/interrupted", "done", "bad_metrics"]
    assert names[3:] == ["bad_record", "started", "thesis"]
    done_run = runs_by_name[f"{runs_folder}/done"]
    interrupted_run = runs_by_name[f"{runs_folder}/deep/interrupted"]
    text = (trained_run / "metrics.csv").read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert done_run["best_accuracy"] == max(float(row["val_accuracy"]) for row in rows)
    assert done_run["last_accuracy"] == float(rows[-1]["val_accuracy"])
    assert done_run["last_loss"] == float(rows[-1]["val_loss"])
    assert (done_run["epochs_done"], done_run["epochs"]) == (8, 8)
    assert done_run["state"] == "done"
    record = json.loads((trained_run / "run.json").read_text())
    assert done_run["commit"] == record["commit"]
    # 5 epochs have 110 steps: an epoch has 22 batches of 64 of the 1437 images.
    assert interrupted_run == {
        "name": f"{runs_folder}/deep/interrupted", "model": "cifar_resnet8",
        "dataset": "digits", "recipe": "digits", "epochs_done": 3, "epochs": 5,
        "best_accuracy": 1.0, "last_accuracy": 0.125, "last_loss": 2.5, "seed": 3,
        "state": "at step 70 of 110", "commit": "abc-dirty",
    }  # fmt: skip
    started_run = runs_by_name[f"{runs_folder}/started"]
    assert (started_run["epochs_done"], started_run["epochs"]) == (0, 3)
    assert started_run["state"] == "at step 0 of 50"
    assert started_run["best_accuracy"] is None
    for name, state in (
        ("bad_record", "run.json is damaged"),
        ("bad_metrics", "metrics.csv is damaged"),
        ("thesis", "not a run folder"),
    ):
        assert runs_by_name[f"{runs_folder}/{name}"]["state"] == state
    assert runs.list_runs(runs_folder / "done") == [done_run]
    with pytest.raises(InputError, match="There is no folder"):
        runs.list_runs(runs_folder / "none")


def test_the_command_prints_a_table_or_csv(runs_folder, tmp_path):
    result = run_child("keras_resnet.runs", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    header, first_row, *other_rows = result.stdout.splitlines()
    assert header.split()[:6] == [
        "name",
        "model",
        "dataset",
        "recipe",
        "epochs",
        "best",
    ]
    assert first_row.split()[:8] == [
        "runs/deep/interrupted", "cifar_resnet8", "digits", "digits", "3/5",
        "100.00%", "12.50%", "2.5000",
    ]  # fmt: skip
    assert "at step 70 of 110" in first_row and len(other_rows) == 5

    result = run_child("keras_resnet.runs", "--csv", "runs/done", "runs", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    expected = [
        {k: "" if v is None else str(v) for k, v in run.items()}
        for run in runs.list_runs(runs_folder)
    ]
    for row in expected:
        row["name"] = row["name"].replace(str(runs_folder), "runs")
    assert rows == expected

    assert_one_line(run_child("keras_resnet.runs", "none", cwd=tmp_path), "'none'")
    shutil.rmtree(runs_folder)
    assert_one_line(run_child("keras_resnet.runs", cwd=tmp_path), "There is no folder")


def test_hostile_folders_neither_block_nor_end_the_list(trained_run, tmp_path, capsys):
    """None of 1,000 folders that an attacker wrote may hide the intact run."""
    root = tmp_path / "runs"
    shutil.copytree(trained_run, root / "intact")
    record = (trained_run / "run.json").read_bytes()
    rng = random.Random(0)
    for index in range(1000):
        folder = root / f"{index}-\x1b[31m"
        folder.mkdir()
        (folder / "run.json").write_bytes(grammars.edit_json(record, rng))
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / f"step-{'9' * rng.choice([1, 99])}").mkdir()
        metrics = rng.choice(
            ["val_accuracy,val_loss\n", "val_accuracy,val_loss\n0.5\n", "\0", "\ufffe",
             "val_accuracy,val_loss\nnan,1\n", "val_accuracy,val_loss\n1e999,=1+1\n"]
        )  # fmt: skip
        (folder / "metrics.csv").write_text(metrics, encoding="utf-8")
    os.mkfifo(root / "pipe")
    (root / "fifo").mkdir()
    os.mkfifo(root / "fifo" / "run.json")
    (root / "loop").symlink_to(root)
    start = time.monotonic()
    with make_deep_folder(root / "deep"):
        rows = runs.list_runs(root)
    assert time.monotonic() - start < 60
    assert len(rows) == 1003
    assert rows[0]["best_accuracy"] <= 1
    (intact,) = (row for row in rows if row["name"] == f"{root}/intact")
    assert intact["state"] == "done"
    assert {"run.json is damaged", "metrics.csv is damaged"} <= {
        row["state"] for row in rows
    }
    print(runs._format_table(rows), to_csv(rows))
    assert "\x1b" not in capsys.readouterr().out
