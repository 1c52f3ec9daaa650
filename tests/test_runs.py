import json

import numpy as np
import pytest

from keras_resnet import classifiers, runs
from keras_resnet.errors import InputError
from keras_resnet.weight_files import load_model


def test_load_run(trained):
    run = classifiers.load_classifier(str(trained))
    assert run.classes == tuple("0123456789")
    assert run.preprocessing.shape == (8, 8, 1)
    assert run.model.output_shape == (None, 10)
    best = classifiers.load_classifier(str(trained / "best.keras"))
    assert best.folder == run.folder == str(trained)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*run\.json"):
        classifiers.load_classifier(str(tmp_path))


def test_a_run_that_has_not_ended(trained, tmp_path):
    (tmp_path / "run.json").write_bytes((trained / "run.json").read_bytes())
    with pytest.raises(InputError, match="has not ended"):
        classifiers.load_classifier(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18, b"{}", "half"])
def test_a_damaged_model(trained, tmp_path, content):
    whole = (trained / "final.keras").read_bytes()
    path = tmp_path / "final.keras"
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(InputError, match=r"final\.keras"):
        load_model(str(path))


def test_write_file_leaves_the_old_one_where_it_fails(tmp_path):
    path = tmp_path / "file"
    runs.write_file(str(path), "old")
    with pytest.raises(TypeError):
        runs.write_file(str(path), None)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_record_says_what_ran(trained):
    record = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    assert record["versions"]["numpy"] == np.__version__
    assert record["machine"]
    assert record["command"]


def test_curves_are_a_picture():
    rows = [
        {
            "epoch": i,
            "loss": 1 / i,
            "accuracy": 0.5,
            "val_loss": 2 / i,
            "val_accuracy": 0.6,
        }
        for i in (1, 2, 3)
    ]
    png = runs.draw_curves(rows)
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") > 800  # Pixels wide.
