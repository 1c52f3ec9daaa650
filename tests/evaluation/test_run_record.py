"""`run.json`: what it holds, and files of other versions."""

import json
import sys

import keras
import numpy as np
import pytest

from keras_resnet.evaluation.run_record import FORMAT, read_record, write_record
from keras_resnet.support.errors import InputError


def test_record_says_what_ran(trained):
    record = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    assert record["versions"]["numpy"] == np.__version__
    assert record["machine"]
    assert record["command"]


def test_what_was_written_is_read(trained, tmp_path):
    record = read_record(trained)
    assert record.versions["keras"] == keras.__version__
    assert record.command == sys.argv
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert (tmp_path / "run.json").read_bytes() == (trained / "run.json").read_bytes()


def test_a_folder_without_a_record(tmp_path):
    assert read_record(tmp_path) is None


def change(trained, tmp_path, **changes):
    """Writes the record with other entries; those that are `None` are left out."""
    record = json.loads((trained / "run.json").read_text(encoding="utf-8")) | changes
    record = {key: value for key, value in record.items() if value is not None}
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")


def test_a_file_of_version_0_1_0(trained, tmp_path):
    """It has no format number."""
    change(trained, tmp_path, format=None)
    assert read_record(tmp_path) == read_record(trained)


def test_a_file_of_a_newer_version(trained, tmp_path):
    change(trained, tmp_path, format=FORMAT + 1)
    with pytest.raises(InputError, match=f"format {FORMAT + 1}, from a newer"):
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
def test_a_damaged_record(changes, trained, tmp_path):
    change(trained, tmp_path, **changes)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3"])
def test_a_file_that_is_no_record(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        read_record(tmp_path)
