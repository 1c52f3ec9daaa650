"""Child processes that run commands, with faults at exact moments.

Each process is forked from a server that has already imported TensorFlow, so it starts
quickly. It runs a command as `python -m` does, with real signals and a real exit status.
A fault is a function of this module that the process calls before it runs the command.
Most of these functions patch the code that the command will run.
"""

import contextlib
import fnmatch
import functools
import json
import multiprocessing
import os
import pathlib
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest.mock
import zipfile

ROOT = pathlib.Path(__file__).parent.parent


@functools.cache
def _get_context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "children",
            "keras_resnet.training.run",
            "sklearn.datasets",
            "matplotlib.figure",
        ]
    )
    return context


class Child:
    """A child process that runs a command.

    Args:
        module: Module of the command, such as `"keras_resnet.train"`.
        *arguments: Command-line arguments.
        cwd: Working directory.
        faults: Faults to inject. Each is a sequence: the name of a function of this
            module, then the arguments of the function.
        terminal: Path of a terminal for the output. Default: the output is captured.
    """

    def __init__(self, module, *arguments, cwd, faults=(), terminal=None):
        original_path = os.environ.get("PYTHONPATH")
        # In Python 3.11 the fork server does not inherit sys.path from this process, so
        # PYTHONPATH passes the folders to the fork server.
        paths = [
            str(ROOT),
            str(ROOT / "tests"),
            *([original_path] if original_path else []),
        ]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        pipes = [_get_context().Pipe(duplex=False) for _ in range(2)]
        argv = [module, *map(str, arguments)]
        try:
            self._process = _get_context().Process(
                target=_run_command,
                args=(argv, str(cwd), faults, [w for _, w in pipes], terminal),
                daemon=True,
            )
            self._process.start()
        finally:
            if original_path is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = original_path
        self.pid = self._process.pid
        self._argv, self._outputs = argv, ["", ""]
        self._readers = [
            threading.Thread(target=self._read_output, args=(i, r), daemon=True)
            for i, (r, _) in enumerate(pipes)
        ]
        for _, writer in pipes:
            writer.close()
        for reader in self._readers:
            reader.start()

    def _read_output(self, index, reader):
        with os.fdopen(os.dup(reader.fileno()), errors="replace") as file:
            self._outputs[index] = file.read()

    @property
    def is_running(self):
        return self._process.is_alive()

    def wait(self, timeout=120):
        """Waits for the end of the command and returns a `CompletedProcess`.

        After `timeout` seconds the process is killed and the test fails.
        """
        self._process.join(timeout)
        is_late = self._process.is_alive()
        if is_late:
            self._process.kill()
            self._process.join()
        for reader in self._readers:
            reader.join()
        assert not is_late, (
            f"{self._argv} took longer than {timeout} s: {self._outputs}"
        )
        stderr = "".join(
            line
            for line in self._outputs[1].splitlines(keepends=True)
            # `filter_cpp_logs` cannot remove these lines in a child process, because
            # the fork server has already imported TensorFlow.
            if not line.startswith(("I0000", "WARNING: All log messages before"))
        )
        return subprocess.CompletedProcess(
            self._argv, self._process.exitcode, self._outputs[0], stderr
        )


def run_child(module, *arguments, timeout=120, **options):
    """Runs a command to its end and returns a `CompletedProcess`."""
    return Child(module, *arguments, **options).wait(timeout)


def _run_command(argv, cwd, faults, outputs, terminal):
    if terminal:
        outputs = [os.open(terminal, os.O_RDWR | os.O_NOCTTY)] * 2
    else:
        outputs = [output.fileno() for output in outputs]
    for descriptor, output in enumerate(outputs, 1):
        os.dup2(output, descriptor)
    os.chdir(cwd)
    sys.argv = argv
    # Unlike a process of a user, a daemonic process may not start other processes.
    multiprocessing.current_process()._config["daemon"] = False
    # The fork server may have imported the module. `run_module` would warn about that.
    sys.modules.pop(argv[0], None)
    for name, *arguments in faults:
        globals()[name](*arguments)
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


# Functions that cause faults.


def kill_on(event, pattern, count=1):
    """Kills the process at an audit event, such as the opening of a file.

    Args:
        event: Event of `sys.audit`, such as `"os.rename"`, `"open"`, `"shutil.rmtree"`.
        pattern: Pattern of `fnmatch` that an argument of the event must match.
        count: Number of matching events. The last one kills the process.
    """
    num_remaining = [count]

    def hook(name, args):
        if name == event and any(fnmatch.fnmatch(str(a), pattern) for a in args):
            num_remaining[0] -= 1
            if not num_remaining[0]:
                _die()

    sys.addaudithook(hook)


def kill_before(module, name, count=1):
    """Kills the process just before a call of a function; see `call_before`."""
    call_before(module, name, "_die", count)


def kill_at_change(number, log_path):
    """Kills the process just before it changes the file system.

    Args:
        number: Number of the change, from 1. With 0 the process is not killed.
        log_path: File that gets a line for each change: the CPU seconds until then.
    """
    log = os.open(log_path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    num_changes, start_time = [0], time.process_time()

    def hook(event, args):
        for _ in _list_changed_paths(event, args):
            num_changes[0] += 1
            os.write(log, f"{time.process_time() - start_time:.3f}\n".encode())
            if num_changes[0] == number:
                _die()

    sys.addaudithook(hook)


def kill_after_seconds(seconds):
    """Kills the process when it has used an amount of CPU time."""
    limit = time.process_time() + seconds

    def watch():
        while time.process_time() < limit:
            time.sleep(0.002)
        _die()

    threading.Thread(target=watch, daemon=True).start()


def kill_after_step(step):
    call_after_step(step, "_die")


def kill_instead_of_failing():
    """Kills the process when writing a checkpoint fails.

    The folder then contains the same partial files as after a kill during the write.
    """
    from tensorflow.train import Checkpoint

    original = Checkpoint.write

    def write(*args, **kwargs):
        try:
            return original(*args, **kwargs)
        except BaseException:
            _die()

    Checkpoint.write = write


def kill_in_archive(pattern, member):
    """Kills the process when it has written half of a member of a zip archive.

    Args:
        pattern: Pattern of the archive's path, for `fnmatch`.
        member: Name of the member.
    """
    original = zipfile._ZipWriteFile.write

    def write(self, content):
        archive = self._zipfile
        if self._zinfo.filename == member and fnmatch.fnmatch(
            archive.filename, pattern
        ):
            original(self, bytes(content)[: len(content) // 2])
            archive.fp.flush()
            _die()
        return original(self, content)

    zipfile._ZipWriteFile.write = write


def call_after_step(step, action, *arguments):
    """Calls a function of this module after a training step.

    Args:
        step: Number of the step, counted from 1 in this process, or `"each"`.
        action: Name of the function.
        *arguments: Arguments of the function.
    """
    from keras_resnet.training.step import Step

    num_steps, original = [0], Step.__call__

    def call(self, batches, count=1):
        original(self, batches, count)
        num_steps[0] += count
        if num_steps[0] == step or step == "each":
            globals()[action](*arguments)

    Step.__call__ = call


def call_before(module, name, action, count=1, *arguments):
    """Calls a function of this module before a call of another function.

    Args:
        module: Module of the other function.
        name: Name of the other function, which may be dotted.
        action: Name of the function to call.
        count: Number of calls of the other function. `action` runs before the last one.
        *arguments: Arguments of the function to call.
    """
    *parents, attribute = name.split(".")
    owner = functools.reduce(getattr, parents, sys.modules[module])
    num_calls, original = [0], getattr(owner, attribute)

    def call(*args, **kwargs):
        num_calls[0] += 1
        if num_calls[0] == count:
            globals()[action](*arguments)
        return original(*args, **kwargs)

    setattr(owner, attribute, call)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt():
    """Sends the signal of Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


_sleep = time.sleep


def _meet(folder):
    """Waits until a second process has called this function with the same folder."""
    pathlib.Path(folder, str(os.getpid())).touch()
    deadline = time.monotonic() + 100
    while len(os.listdir(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)


def _limit_files(max_size):
    """Makes writing a file larger than `max_size` bytes fail, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_size, resource.RLIM_INFINITY))


def _fill_disk(path, num_free_bytes):
    """Fills the disk with a file at `path` until `num_free_bytes` bytes are free."""
    disk_stats = os.statvfs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(
            bytes(max(0, disk_stats.f_bavail * disk_stats.f_frsize - num_free_bytes))
        )


def confine(folder, environment=()):
    """Ends the process if it changes files outside of a folder or needs too much.

    The process may use 3 GiB of memory beyond the fork server's, and a minute of CPU time.
    Its home folder and its folder of temporary files are in `folder`.

    Args:
        folder: Path of the only folder that the process may change.
        environment: Pairs of a name and a value of environment variables to set.
    """
    num_pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    for kind, limit in (
        (resource.RLIMIT_AS, num_pages * resource.getpagesize() + 3 * 2**30),
        (resource.RLIMIT_CPU, int(time.process_time()) + 60),
        (resource.RLIMIT_FSIZE, 2**30),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    folder = os.path.realpath(folder)
    for name, value in (
        ("HOME", f"{folder}/home"),
        ("KERAS_HOME", f"{folder}/home/.keras"),
        ("TMPDIR", f"{folder}/tmp"),
        *environment,
    ):
        os.environ[name] = value
    for name in ("home", "tmp"):
        os.makedirs(f"{folder}/{name}", exist_ok=True)
    tempfile.tempdir, sys.dont_write_bytecode = f"{folder}/tmp", True

    def hook(event, args):
        for path in _list_changed_paths(event, args):
            real_path = os.path.realpath(os.fsdecode(path))
            is_device = event == "open" and pathlib.Path(real_path).is_char_device()
            if not is_device and not f"{real_path}/".startswith(
                (f"{folder}/", "/proc/")
            ):
                os.write(2, f"changes a file outside: {event} {path!r}\n".encode())
                os._exit(OUTSIDE)

    sys.addaudithook(hook)


# Exit status of a process that is ended by SIGKILL.
KILLED = -signal.SIGKILL

# Exit status of a process that changes a file outside of its folder; see `confine`.
OUTSIDE = 70

_CHANGES = ("os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink")
_CHANGES += ("os.truncate", "shutil.rmtree")


def _list_changed_paths(event, args):
    """Returns the paths of files that an audit event announces to change."""
    is_change = event in _CHANGES
    if event == "open":
        is_change = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    paths = args[:2] if event in ("os.link", "os.rename") else args[:1]
    return [p for p in paths if is_change and isinstance(p, str | bytes | os.PathLike)]


def record_power_losses(root, target):
    """Saves the states that power failures would leave; see `power_loss.Recorder`."""
    from power_loss import Recorder

    Recorder(root, target).start()


def become_nobody():
    """Runs the process as the user `nobody`, who cannot write to folders of other users."""
    os.setgid(65534)
    os.setuid(65534)


def hide_package(package):
    """Makes the import of a package fail, as if the package were not installed."""
    sys.modules[package] = None


# Functions that read the results of training runs.


@contextlib.contextmanager
def copy_run(step, folder, snapshot_path):
    """Copies a run folder of this process when the checkpoint of `step` is written.

    The copy has the files that the run would leave if it were killed at that moment.
    """
    from keras_resnet.training.checkpoints import Checkpoints

    original = Checkpoints.save

    def save(self, number):
        original(self, number)
        if number == step:
            shutil.copytree(folder, snapshot_path)

    with unittest.mock.patch.object(Checkpoints, "save", save):
        yield


def read_members(path):
    """Returns a dict from the names of a `.keras` file's members to their contents.

    The date and the ids of shared objects are removed, because they differ even between
    files of the same network.
    """
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
        metadata = json.loads(content.pop("metadata.json"))
        metadata.pop("date_saved")
        config = re.sub(rb'"shared_object_id": \d+', b"", content.pop("config.json"))
        return {
            **content, "config": config, "metadata": metadata, "comment": archive.comment
        }  # fmt: skip


def assert_same_results(folder, expected_folder):
    """Asserts that two run folders contain the same files, bit for bit."""
    names = ["augmented.png", "best.keras", "curves.png", "final.keras"]
    names += ["metrics.csv", "run.json"]
    assert sorted(os.listdir(expected_folder)) == names
    assert sorted(os.listdir(folder)) == names
    for name in ("final.keras", "best.keras"):
        expected = read_members(expected_folder / name)
        members = read_members(folder / name)
        assert members.keys() == expected.keys()
        differing_names = [key for key in expected if members[key] != expected[key]]
        assert not differing_names, (name, differing_names)
    for name in ("metrics.csv", "curves.png", "augmented.png"):
        content = (folder / name).read_bytes()
        assert content == (expected_folder / name).read_bytes(), name


def find_checkpoint_steps(folder):
    """Returns the sorted steps of the checkpoints in a run folder."""
    paths = (folder / "checkpoints").glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in paths)


def assert_finite(path):
    """Checks that a checkpoint can be read and contains only finite numbers.

    Args:
        path: Folder of the checkpoint, such as `checkpoints/step-4`.
    """
    import numpy as np
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(path / "state"))
    arrays = [reader.get_tensor(name) for name in reader.get_variable_to_shape_map()]
    float_arrays = [
        array
        for array in arrays
        if np.issubdtype(getattr(array, "dtype", "O"), np.floating)
    ]
    assert len(float_arrays) > 50
    assert all(np.isfinite(array).all() for array in float_arrays)
