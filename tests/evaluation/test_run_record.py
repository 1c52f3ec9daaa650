"""Reading and writing of `run.json`, also of damaged files and of other versions."""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile

import grammars
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_resnet.evaluation.run_record import RunRecord, read_record, write_record
from keras_resnet.spec import RUN_FORMAT, find_variant
from keras_resnet.support.errors import InputError


def test_a_record_contains_versions_machine_and_command(trained_run):
    record = json.loads((trained_run / "run.json").read_text(encoding="utf-8"))
    assert record["versions"]["numpy"] == np.__version__
    assert record["machine"]
    assert record["command"]


def test_a_written_record_is_read_back(trained_run, tmp_path):
    record = read_record(trained_run)
    assert record.versions["keras"] == keras.__version__
    assert record.command == sys.argv
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert (tmp_path / "run.json").read_bytes() == (
        trained_run / "run.json"
    ).read_bytes()


def test_a_folder_without_a_file_has_no_record(tmp_path):
    assert read_record(tmp_path) is None


def write_changed_record(trained_run, tmp_path, **changes):
    """Writes a copy of `run.json` with changed entries. `None` deletes an entry."""
    record = (
        json.loads((trained_run / "run.json").read_text(encoding="utf-8")) | changes
    )
    record = {key: value for key, value in record.items() if value is not None}
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")


def test_a_file_of_version_0_1_0_is_read(trained_run, tmp_path):
    """Files of version 0.1.0 contain no format number."""
    write_changed_record(trained_run, tmp_path, format=None)
    record = read_record(trained_run)
    old_spec = dataclasses.replace(record.spec, format=1)
    assert read_record(tmp_path) == dataclasses.replace(record, spec=old_spec)


def test_a_file_of_a_newer_version_is_refused(trained_run, tmp_path):
    write_changed_record(trained_run, tmp_path, format=RUN_FORMAT + 1)
    with pytest.raises(InputError, match=f"format {RUN_FORMAT + 1}, from a newer"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": None},
        {"settings": {"model": "resnet20"}},
        {"classes": []},
        {"classes": None},
        {"classes": "abc"},
        {"classes": ["\ud800"]},
        {"preprocessing": {"height": 8}},
        {"preprocessing": {"depth": 8}},
        {"preprocessing": {"height": 2**40, "width": 8, "channels": 1}},
        {"preprocessing": {"height": 8, "width": 8, "channels": 1, "crop": 0}},
        {"preprocessing": {"height": 8, "width": 8, "channels": True}},
        {
            "preprocessing": {
                "height": 8, "width": 8, "channels": 1, "interpolation": "\x1b[31m"
            }
        },
        {"format": "one"},
        {"format": True},
        {"commit": 3},
        {"versions": {"keras": 3}},
        {"command": "train"},
        {"machine": []},
    ],
)  # fmt: skip
def test_a_record_with_damaged_entries_is_refused(changes, trained_run, tmp_path):
    write_changed_record(trained_run, tmp_path, **changes)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "resnet21"),
        ("model", 3),
        ("stride_on", "2x2"),
        ("images", [1, 2, 3]),
        ("images", [-1, 2]),
        ("input_shape", [10**6, 8, 1]),
        ("epochs", 0),
        ("epochs", 10**30),
        ("epochs", "8"),
        ("batch_size", 0.5),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("schedule", "none"),
        ("drops", "all"),
        ("flip", 1),
        ("precision", "float8"),
        ("checkpoint_every", 0),
        ("seed", None),
        ("replicas", -1),
    ],
)
def test_a_record_with_unusable_settings_is_refused(name, value, trained_run, tmp_path):
    record = json.loads((trained_run / "run.json").read_text(encoding="utf-8"))
    settings = record["settings"] | {name: value}
    write_changed_record(trained_run, tmp_path, settings=settings)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        read_record(tmp_path)


@given(rng=st.randoms(use_true_random=False))
def test_an_edited_record_is_refused_or_has_the_declared_types(trained_run, rng):
    content = grammars.edit_json((trained_run / "run.json").read_bytes(), rng)
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "run.json").write_bytes(content)
        try:
            record = read_record(folder)
        except InputError as error:
            assert "\n" not in str(error)
            return
    assert isinstance(record, RunRecord) and record.classes
    assert all(isinstance(name, str) for name in record.classes)
    assert find_variant(record.spec.model)
    assert record.spec.total_steps >= 0
    assert "".join(record.classes).encode() is not None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "[" * 10**5])
def test_a_file_that_contains_no_record_is_refused(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        read_record(tmp_path)


def test_a_pipe_or_an_oversized_file_is_refused(tmp_path):
    """Opening a pipe would wait for a writer."""
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(InputError, match="regular file"):
        read_record(tmp_path)
    (tmp_path / "run.json").unlink()
    with open(tmp_path / "run.json", "wb") as file:
        file.truncate(2**40)  # The file is sparse and takes no space.
    with pytest.raises(InputError, match="regular file"):
        read_record(tmp_path)
