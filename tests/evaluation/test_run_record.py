"""Reading and writing of `run.json`, also of damaged files and of other versions."""

import json
import sys

import keras
import numpy as np
import pytest

from keras_resnet.evaluation.run_record import FORMAT_NUMBER, read_record, write_record
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
    assert read_record(tmp_path) == read_record(trained_run)


def test_a_file_of_a_newer_version_is_refused(trained_run, tmp_path):
    write_changed_record(trained_run, tmp_path, format=FORMAT_NUMBER + 1)
    with pytest.raises(InputError, match=f"format {FORMAT_NUMBER + 1}, from a newer"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": None},
        {"settings": {"model": "resnet20"}},
        {"classes": []},
        {"classes": None},
        {"preprocessing": {"height": 8}},
        {"preprocessing": {"depth": 8}},
        {"format": "one"},
    ],
)
def test_a_record_with_damaged_entries_is_refused(changes, trained_run, tmp_path):
    write_changed_record(trained_run, tmp_path, **changes)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3"])
def test_a_file_that_contains_no_record_is_refused(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        read_record(tmp_path)
