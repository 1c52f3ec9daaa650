"""Run folders: the figure of the curves, and files of a killed process."""

import pytest

from keras_resnet.support.errors import InputError
from keras_resnet.training import figures, run_folder


def test_curves_are_a_png_file():
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
    png = figures.draw_curves(rows)
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") > 800  # Image width in pixels.


def test_a_run_without_an_epoch_has_no_curves(tmp_path):
    folder = run_folder.RunFolder(str(tmp_path))
    folder.on_train_end()
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    for name in ("best.part.keras", "metrics.csv.part", "best.keras", "my.partition"):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoints").mkdir()
    run_folder.remove_leftovers(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best.keras", "my.partition", "checkpoints"}
    run_folder.remove_leftovers(tmp_path, remove_checkpoints=True)
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_that_another_process_has_completed_is_not_trained_again(tmp_path):
    """The other process ended between the inspection and the locking of the folder."""
    (tmp_path / "final.keras").write_text("")
    with (
        pytest.raises(InputError, match="Another process has completed the run"),
        run_folder.open_run_folder(str(tmp_path), None),
    ):
        pass
    with run_folder.lock_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["final.keras"]
