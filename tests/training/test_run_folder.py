"""Run folders: the figure of the curves, the end of a run, files of killed processes."""

import dataclasses
import json
import shutil

import pytest

from keras_resnet.evaluation import read_record, write_record
from keras_resnet.spec import RunSpec
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
    """Another process may be writing a report."""
    report_name = ".evaluation.json.0123abcd-1-0123abcd.part"
    for name in ("best.part.keras", "metrics.csv.part", "best.keras", report_name):
        (tmp_path / name).write_text("")
    for name in ("step-2", ".step-4.0123abcd-1-0123abcd.part/state_temp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    run_folder.remove_leftovers(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best.keras", report_name, "checkpoints"}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]
    run_folder.remove_leftovers(tmp_path, remove_checkpoints=True)
    assert not (tmp_path / "checkpoints").exists()


def test_a_killed_write_of_the_first_file_is_no_other_file(tmp_path):
    (tmp_path / ".run.json.0123abcd-1-0123abcd.part").write_text("{")
    assert not run_folder.has_ended(str(tmp_path), None, ())
    (tmp_path / "photo.png").touch()
    with pytest.raises(InputError, match="which holds other files"):
        run_folder.has_ended(str(tmp_path), None, ())


@pytest.fixture
def ended_run(trained_run, tmp_path):
    """Copy of a run that has ended. A test may change the copy."""
    return shutil.copytree(trained_run, tmp_path / "run")


def inspect(folder):
    record = read_record(folder)
    return run_folder.has_ended(str(folder), record.spec, record.classes)


def remove_hash(folder, format_number):
    content = json.loads((folder / "run.json").read_text("utf-8"))
    del content["final_sha256"]
    content["format"] = format_number
    (folder / "run.json").write_text(json.dumps(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def fill_with_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def zero_a_page(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = (
    lambda path: path.write_bytes(b""), truncate, fill_with_zeros, zero_a_page,
    replace_by_folder,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("format_number", [None, 1, 2])
def test_the_end_of_a_run_is_believed_if_its_network_is_intact(
    damage, format_number, ended_run
):
    """Version 0.1.0 noted no hash. In later formats, a run without a hash has not ended.

    A damaged run resumes from its checkpoints. If there are none, nothing is changed,
    unless the run has not ended and starts again.
    """
    if format_number:
        remove_hash(ended_run, format_number)
    assert inspect(ended_run) == (format_number != 2)
    damage(ended_run / "final.keras")
    if format_number == 2:
        assert not inspect(ended_run)
    else:
        message = r"has ended, but its final\.keras is damaged"
        with pytest.raises(InputError, match=message):
            inspect(ended_run)
    (ended_run / "checkpoints" / "step-4").mkdir(parents=True)
    assert not inspect(ended_run)


def test_another_network_than_that_of_the_noted_hash_does_not_end_a_run(ended_run):
    shutil.copy(ended_run / "best.keras", ended_run / "final.keras")
    with pytest.raises(InputError, match=r"final\.keras is damaged or missing"):
        inspect(ended_run)
    (ended_run / "final.keras").unlink()
    with pytest.raises(InputError, match=r"final\.keras is damaged or missing"):
        inspect(ended_run)


def test_a_run_that_another_process_has_completed_is_not_trained_again(ended_run):
    """The other process ended between the inspection and the locking of the folder."""
    contents = {path: path.read_bytes() for path in ended_run.iterdir()}
    with (
        pytest.raises(InputError, match="Another process has completed the run"),
        run_folder.open_run_folder(str(ended_run), read_record(ended_run)),
    ):
        pass
    with run_folder.lock_folder(ended_run):
        assert contents == {path: path.read_bytes() for path in ended_run.iterdir()}


def test_checkpoints_are_kept_if_the_written_network_is_damaged(ended_run):
    (ended_run / "checkpoints" / "step-4").mkdir(parents=True)
    truncate(ended_run / "final.keras")
    with pytest.raises(OSError, match=r"damaged.*final\.keras"):
        run_folder.finish_run(str(ended_run), read_record(ended_run))
    assert (ended_run / "checkpoints" / "step-4").exists()


@pytest.mark.parametrize(
    ("changes", "run_format", "reason"),
    [
        ({}, 1, None),
        ({}, 2, None),
        ({"batch_size": 4}, 2, None),
        # Of 1,437 images, the last one makes a batch with one replica, but not with two.
        ({"batch_size": 4}, 1, "the steps per epoch"),
        ({"sync_bn": False}, 2, "sync_bn"),
        ({"accumulate": 2}, 2, "accumulate"),
        ({"stochastic_depth": 0.1}, 2, "stochastic_depth"),
    ],
)
def test_devices_may_change_if_this_changes_only_the_rounding(
    changes, run_format, reason, trained_run, tmp_path
):
    record = read_record(trained_run)
    settings = {**record.spec.to_settings(), "images": [1437, 360], **changes}
    settings |= {"strategy": "one_device", "replicas": 1}
    spec = RunSpec.from_settings(settings, run_format)
    write_record(tmp_path, dataclasses.replace(record, spec=spec, final_sha256=None))
    (tmp_path / "checkpoints/step-8").mkdir(parents=True)
    new_spec = dataclasses.replace(spec, strategy="mirrored", replicas=2, format=2)
    resumed_spec, devices = run_folder.continue_run(str(tmp_path), new_spec)
    assert resumed_spec == dataclasses.replace(new_spec, format=run_format)
    assert devices == [(0, "one_device", 1), (8, "mirrored", 2)]
    if reason is None:
        assert not run_folder.has_ended(tmp_path, resumed_spec, record.classes)
        return
    with pytest.raises(InputError) as error:
        run_folder.has_ended(tmp_path, resumed_spec, record.classes)
    for words in (
        "strategy (began with 'one_device', now 'mirrored')",
        "replicas (began with 1, now 2)",
        f"Replicas matter because of {reason}",
    ):
        assert words in str(error.value)
