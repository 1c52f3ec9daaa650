"""Reading of `study.json` and of tables that someone else wrote."""

import json
import os
import pathlib
import tempfile

import grammars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_resnet.studies.lib import report
from keras_resnet.studies.lib.study import Options
from keras_resnet.studies.lib.tables import is_table, read_table
from keras_resnet.support import InputError

RECORD = {
    "format": 1,
    "command": "python -m keras_resnet.studies.lesion --seeds=1",
    "options": {"dataset": "digits", "depths": [14, 20], "seeds": 1, "workers": None},
    "commit": None,
    "machine": "Linux",
    "versions": {"keras": "3.12"},
}


@given(rng=st.randoms(use_true_random=False))
def test_an_edited_record_is_refused_or_can_be_shown(rng):
    content = grammars.edit_json(json.dumps(RECORD).encode(), rng)
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "study.json").write_bytes(content)
        try:
            record, options = report.read_record(folder, Options)
        except InputError:
            return
    settings = "{images}{dataset}; {depths}, {seeds}, {epochs}".format(
        **options.describe()
    )
    section = report.Section("t", "c", [], b"", record, "a.csv", settings)
    page = report.render_page("t", [section])
    assert "<script>alert" not in page
    page.encode()


@pytest.mark.parametrize(
    "changes",
    [{"command": None}, {"versions": []}, {"machine": 3}, {"options": {"depths": 8}},
     {"options": {"seeds": "3"}}, {"options": {"output": None}}],
)  # fmt: skip
def test_a_record_with_wrong_types_is_refused(tmp_path, changes):
    (tmp_path / "study.json").write_text(json.dumps(RECORD | changes))
    with pytest.raises(InputError, match=r"study\.json is missing or damaged"):
        report.read_record(str(tmp_path), Options)


@pytest.mark.parametrize(
    "content",
    [b"a,b\n1\n", b"a,b\n1,2,3\n", b"a\n\xff\n", b'a\n"x\n', b"a\n" + b"1" * 200_000],
)
def test_a_damaged_table_is_refused(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.csv cannot be read"):
        read_table(tmp_path / "t.csv")


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    assert not is_table(tmp_path / "t.csv")
