import errno
import os
import stat

import pytest

from keras_resnet.support import files
from keras_resnet.support.errors import InputError


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    files.write_file(path, "old")
    files.write_file(path, "nëw")
    assert path.read_text("utf-8") == "nëw"
    files.write_file(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_concurrent_writers_use_different_temporary_files(tmp_path):
    """If the writers shared a file, one could rename it before the other is done."""
    path = tmp_path / "a.bin"
    with files.replace_atomically(path) as path_1, open(path_1, "wb") as file_1:
        file_1.write(b"1" * 1000)
        with files.replace_atomically(path) as path_2:
            assert path_1 != path_2
            with open(path_2, "wb") as file_2:
                file_2.write(b"2" * 500)
        assert path.read_bytes() == b"2" * 500
        file_1.write(b"1" * 1000)
    assert path.read_bytes() == b"1" * 2000
    assert os.listdir(tmp_path) == ["a.bin"]


def test_content_is_flushed_before_the_rename(tmp_path, monkeypatch):
    calls = []
    original_fsync, original_replace = os.fsync, os.replace

    def log_fsync(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        calls.append(f"fsync {kind}")
        original_fsync(handle)

    def log_replace(*paths):
        calls.append("rename")
        original_replace(*paths)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "replace", log_replace)
    files.write_file(tmp_path / "a.txt", "text")
    assert calls == ["fsync file", "rename", "fsync folder"]


def test_the_temporary_path_has_the_requested_suffix(tmp_path):
    with files.replace_atomically(tmp_path / "a.keras", ".keras") as temporary_path:
        assert temporary_path.endswith(".keras")
        assert os.path.dirname(temporary_path) == str(tmp_path)
        open(temporary_path, "w").close()
    assert os.listdir(tmp_path) == ["a.keras"]


def test_the_file_mode_follows_the_umask(tmp_path):
    original_umask = os.umask(0o027)
    try:
        files.write_file(tmp_path / "a.txt", "text")
    finally:
        os.umask(original_umask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (RuntimeError("Unable to flush\nmore"), "Unable to flush"),
    ],
)
def test_a_failed_write_keeps_the_old_file(tmp_path, fault, message):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with (
        pytest.raises(OSError, match=message) as error,
        files.replace_atomically(path) as temporary_path,
    ):
        open(temporary_path, "w").close()
        raise fault
    assert str(path) in str(error.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("fault", [TypeError, AttributeError, ValueError])
def test_a_fault_while_writing_is_not_an_error_of_the_disk(tmp_path, fault):
    with pytest.raises(fault), files.replace_atomically(tmp_path / "a") as path:
        open(path, "w").close()
        raise fault
    with (
        pytest.raises(files.WriteError),
        files.replace_atomically(tmp_path / "a", library_error=fault) as path,
    ):
        raise fault
    assert not os.listdir(tmp_path)


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    files.write_json(tmp_path / ("a" * 255), {"é": [1]})
    assert os.listdir(tmp_path) == ["a" * 255]
    assert (tmp_path / ("a" * 255)).read_text("utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'


def test_json_with_nan_is_refused(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not os.listdir(tmp_path)


def test_a_folder_is_replaced(tmp_path):
    path = tmp_path / "bundle"
    for text in ("old", "new"):
        with files.replace_folder_atomically(path) as temporary_path:
            files.write_file(os.path.join(temporary_path, f"{text}.txt"), text)
        assert os.listdir(path) == [f"{text}.txt"]
    with pytest.raises(RuntimeError), files.replace_folder_atomically(path):
        raise RuntimeError
    assert os.listdir(path) == ["new.txt"]
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_folder_that_cannot_be_replaced_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old.txt").touch()
    original_rename = os.rename

    def rename(source, target):
        if str(source).endswith(".part"):
            raise OSError(errno.EBUSY, "busy")
        original_rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with (
        pytest.raises(OSError, match="busy"),
        files.replace_folder_atomically(path) as temporary_path,
    ):
        files.write_file(os.path.join(temporary_path, "new.txt"), "")
    assert os.listdir(path) == ["old.txt"]
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_folder_in_a_file_is_refused(tmp_path):
    (tmp_path / "a").touch()
    with (
        pytest.raises(InputError, match="The parent of the output folder must be"),
        files.replace_folder_atomically(tmp_path / "a" / "bundle"),
    ):
        pass


def test_keras_home_is_set_by_the_environment(monkeypatch):
    monkeypatch.setenv("KERAS_HOME", "/caches/keras")
    assert files.keras_home() == "/caches/keras"
    monkeypatch.setenv("KERAS_HOME", "")
    monkeypatch.setenv("HOME", "/home/user")
    assert files.keras_home() == "/home/user/.keras"


def test_partial_files_of_killed_processes_are_removed(tmp_path):
    with files.replace_atomically(tmp_path / "a.txt") as temporary_path:
        open(temporary_path, "w").close()
        partial_files = [
            os.path.basename(temporary_path),
            "metrics.csv.part",
            "best.part.keras",
        ]
        for name in (*partial_files, "metrics.csv", "partial.txt"):
            (tmp_path / name).touch()
        files.remove_partial_files(tmp_path)
        assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "partial.txt"]
        open(temporary_path, "w").close()
