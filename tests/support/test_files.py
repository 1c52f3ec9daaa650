import errno
import os
import stat
import subprocess
import sys

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
    """Only those of the named files. Version 0.1.0 wrote the last three."""
    kept_names = ["metrics.csv", "my.part", ".report.csv.0123abcd-1-01230000.part"]
    names = [
        ".metrics.csv.0123abcd-1-01230000.part",
        ".best.keras.0123abcd-1-01230000.part.keras",
        ".best.keras.k2j4.part.keras",
        "metrics.csv.part",
        "best.part.keras",
    ]
    for name in (*names, *kept_names):
        (tmp_path / name).touch()
    files.remove_partial_files(tmp_path, ("metrics.csv", "best.keras"))
    assert sorted(os.listdir(tmp_path)) == sorted(kept_names)


@pytest.fixture
def dead_process_id():
    """Id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make_leftover(path, process_id, number="0123abcd", host_id=None, ending=".part"):
    """Returns the path that a writer of `path` in another process would use."""
    host_id = host_id or files._find_host_id()
    return path.parent / f".{path.name}.{host_id}-{process_id}-{number}{ending}"


def test_only_leftovers_of_dead_writers_of_the_same_file_are_removed(
    tmp_path, dead_process_id, monkeypatch
):
    monkeypatch.setattr(files, "_own_numbers", {"11112222"})
    path, other_path = tmp_path / "a.csv", tmp_path / "a.csv.gz"
    dead = [
        make_leftover(path, dead_process_id),
        make_leftover(path, dead_process_id, ending=".part.keras"),
        make_leftover(path, 2**70),
        # A process of a restarted container, with the same id as this process.
        make_leftover(path, os.getpid()),
    ]
    living = [
        make_leftover(path, os.getppid()),
        make_leftover(path, os.getpid(), "11112222"),
        make_leftover(path, dead_process_id, host_id="00000000"),
        make_leftover(other_path, dead_process_id),
        tmp_path / ".a.csv.part",
    ]
    for leftover in (*dead, *living):
        leftover.touch()
    files.write_file(path, "text")
    assert sorted(tmp_path.iterdir()) == sorted([path, *living])


def test_nothing_is_removed_where_processes_cannot_be_checked(
    tmp_path, dead_process_id, monkeypatch
):
    leftover = make_leftover(tmp_path / "a.csv", dead_process_id)
    leftover.touch()
    monkeypatch.setattr(files.os, "kill", None)
    monkeypatch.setattr(files.os, "name", "nt")
    assert not files._is_abandoned(
        files._find_host_id(), str(dead_process_id), "0123abcd"
    )
    assert leftover.exists()


def test_a_folder_that_a_killed_writer_moved_aside_is_moved_back(
    tmp_path, dead_process_id
):
    path = tmp_path / "x.part.old" / "bundle"
    old_folder = make_leftover(path, dead_process_id, ending=".part.old9")
    new_folder = make_leftover(path, dead_process_id)
    for folder in (old_folder, new_folder):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(folder.name)
    with pytest.raises(KeyError), files.replace_folder_atomically(path):
        assert (path / "a.txt").read_text() == old_folder.name
        raise KeyError
    assert os.listdir(path.parent) == ["bundle"]
    # If the folder exists, it is newer.
    old_folder.mkdir()
    with files.replace_folder_atomically(path) as folder:
        files.write_file(os.path.join(folder, "b.txt"), "")
    assert os.listdir(path) == ["b.txt"]
    assert os.listdir(path.parent) == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupt_between_two_renames_loses_no_folder(error, tmp_path, monkeypatch):
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old.txt").touch()
    original_rename = os.rename

    def rename(source, target):
        if str(source).endswith(".part"):
            raise error
        original_rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(error), files.replace_folder_atomically(path):
        pass
    assert os.listdir(path) == ["old.txt"]
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "version-1").mkdir()
    (tmp_path / "version-1" / "old.txt").touch()
    (tmp_path / "link").symlink_to("version-1")
    with files.replace_folder_atomically(tmp_path / "link") as folder:
        files.write_file(os.path.join(folder, "new.txt"), "")
    assert os.listdir(tmp_path / "version-1") == ["new.txt"]
    assert sorted(os.listdir(tmp_path)) == ["link", "version-1"]


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127, "😀" * 63])
def test_long_names_do_not_collide(name, tmp_path, dead_process_id):
    """The temporary names of two long names differ, so no folder gets a wrong name."""
    path, other_path = tmp_path / name, tmp_path / (name[:-1] + "b")
    with files.replace_atomically(path, ".weights.h5") as temporary_path:
        assert len(os.fsencode(os.path.basename(temporary_path))) < 250
        open(temporary_path, "w").close()
    old_folder = tmp_path / os.path.basename(temporary_path).replace(
        f"-{os.getpid()}-", f"-{dead_process_id}-"
    ).replace(".part.weights.h5", ".part.old9")
    path.unlink()
    old_folder.mkdir()
    with files.replace_folder_atomically(other_path):
        pass
    assert old_folder.exists() and not os.path.lexists(path)
    with files.replace_folder_atomically(path):
        assert path.is_dir() and not old_folder.exists()
