"""Programs in forked processes, which start at once, with faults at exact moments.

Every process is a fork of a server that has imported TensorFlow and run nothing with
it; there the program runs as `python -m` runs it, real signals and exit status
included. A fault is a function of this module that the process calls first.
"""

import fnmatch
import functools
import json
import multiprocessing
import os
import pathlib
import re
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import zipfile

ROOT = pathlib.Path(__file__).parent.parent


@functools.cache
def _context():
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
    """A program that runs.

    Args:
        module: such as `"keras_resnet.train"`.
        *arguments: of its command line.
        cwd: where it runs.
        faults: lists of the name of a function below and its arguments.
        terminal: path of a terminal, for its output.
    """

    def __init__(self, module, *arguments, cwd, faults=(), terminal=None):
        path = os.environ.get("PYTHONPATH")
        # The server does not get this process's sys.path (Python 3.11).
        places = [str(ROOT), str(ROOT / "tests"), *([path] if path else [])]
        os.environ["PYTHONPATH"] = os.pathsep.join(places)
        pipes = [_context().Pipe(duplex=False) for _ in range(2)]
        argv = [module, *map(str, arguments)]
        try:
            self._process = _context().Process(
                target=_run,
                args=(argv, str(cwd), faults, [w for _, w in pipes], terminal),
                daemon=True,
            )
            self._process.start()
        finally:
            if path is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = path
        self.pid = self._process.pid
        self._argv, self._texts = argv, ["", ""]
        self._readers = [
            threading.Thread(target=self._read, args=(i, r), daemon=True)
            for i, (r, _) in enumerate(pipes)
        ]
        for _, writer in pipes:
            writer.close()
        for reader in self._readers:
            reader.start()

    def _read(self, number, reader):
        with os.fdopen(os.dup(reader.fileno()), errors="replace") as file:
            self._texts[number] = file.read()

    @property
    def runs(self):
        return self._process.is_alive()

    def wait(self, timeout=120):
        """Returns a `subprocess.CompletedProcess`; the process is killed if late."""
        self._process.join(timeout)
        late = self._process.is_alive()
        if late:
            self._process.kill()
            self._process.join()
        for reader in self._readers:
            reader.join()
        assert not late, f"{self._argv} took longer than {timeout} s: {self._texts}"
        errors = "".join(
            line
            for line in self._texts[1].splitlines(keepends=True)
            # As `without_notes` leaves them out; here TensorFlow was there before.
            if not line.startswith(("I0000", "WARNING: All log messages before"))
        )
        return subprocess.CompletedProcess(
            self._argv, self._process.exitcode, self._texts[0], errors
        )


def run_child(module, *arguments, timeout=120, **options):
    """Runs a program to its end."""
    return Child(module, *arguments, **options).wait(timeout)


def _run(argv, cwd, faults, outputs, terminal):
    if terminal:
        outputs = [os.open(terminal, os.O_RDWR | os.O_NOCTTY)] * 2
    else:
        outputs = [output.fileno() for output in outputs]
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
    os.chdir(cwd)
    sys.argv = argv
    sys.modules.pop(argv[0], None)  # The server may have imported it.
    for name, *arguments in faults:
        globals()[name](*arguments)
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


# The faults.


def kill_on(event, pattern, count=1):
    """Dies where Python is about to do that to a path for the count-th time.

    Args:
        event: of `sys.audit`, such as `"os.rename"`, `"open"`, `"shutil.rmtree"`.
        pattern: of the path, as for `fnmatch`.
        count: how often it happens.
    """
    left = [count]

    def hook(name, args):
        if name == event and any(fnmatch.fnmatch(str(a), pattern) for a in args):
            left[0] -= 1
            if not left[0]:
                _die()

    sys.addaudithook(hook)


def kill_before(module, name, count=1):
    """Dies where a function is called for the count-th time."""
    before(module, name, "_die", count)


def kill_after_step(step):
    after_step(step, "_die")


def kill_instead_of_failing():
    """Dies where a checkpoint could not be written, which leaves the same files."""
    from tensorflow.train import CheckpointManager

    original = CheckpointManager.save

    def save(*args, **kwargs):
        try:
            return original(*args, **kwargs)
        except BaseException:
            _die()

    CheckpointManager.save = save


def kill_in_archive(pattern, member):
    """Dies where half of a file in a zip archive has been written."""
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


def after_step(step, action, *arguments):
    """Does something after that many steps of this process."""
    from keras_resnet.training.step import Step

    taken, original = [0], Step.__call__

    def call(self, batches, count=1):
        original(self, batches, count)
        taken[0] += count
        if taken[0] == step or step == "each":
            globals()[action](*arguments)

    Step.__call__ = call


def before(module, name, action, count=1, *arguments):
    """Does something before a function's count-th call; `name` may be dotted."""
    *way, last = name.split(".")
    holder = functools.reduce(getattr, way, sys.modules[module])
    calls, original = [0], getattr(holder, last)

    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            globals()[action](*arguments)
        return original(*args, **kwargs)

    setattr(holder, last, call)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _terminate():
    os.kill(os.getpid(), signal.SIGTERM)


_sleep = time.sleep


def _overflow():
    """Makes a weight infinite that the next loss will not show."""
    import gc

    import keras

    (network,) = (
        each
        for each in gc.get_objects()
        if isinstance(each, keras.Model) and each.optimizer is not None
    )
    kernel = network.get_layer("predictions").kernel
    kernel.assign(kernel + float("inf"))


def _limit_files(size):
    """From here on a file larger than that cannot be written, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _fill(path, left):
    """Fills the disk but for that many bytes."""
    free = os.statvfs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - left)))


def become_nobody():
    os.setgid(65534)
    os.setuid(65534)


def hide(package):
    """As if a package were not installed."""
    sys.modules[package] = None


# What the runs are.


def members(path):
    """What a `.keras` file holds: a dict from names to bytes.

    Without its date, and the addresses by which Keras tells objects apart.
    """
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
        metadata = json.loads(found.pop("metadata.json"))
        metadata.pop("date_saved")
        config = re.sub(rb'"shared_object_id": \d+', b"", found.pop("config.json"))
        return {
            **found, "config": config, "metadata": metadata, "comment": archive.comment
        }  # fmt: skip


def assert_same_end(folder, whole):
    """Both runs left the same files, bit for bit, and no other ones."""
    names = ["augmented.png", "best.keras", "curves.png", "final.keras"]
    names += ["metrics.csv", "run.json"]
    assert sorted(os.listdir(whole)) == sorted(os.listdir(folder)) == names
    for name in ("final.keras", "best.keras"):
        expected, found = members(whole / name), members(folder / name)
        assert found.keys() == expected.keys()
        different = [key for key in expected if found[key] != expected[key]]
        assert not different, (name, different)
    for name in ("metrics.csv", "curves.png", "augmented.png"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def checkpoints_of(folder):
    """The steps of which there are a data file and an index, of either alone too."""
    found = (folder / "checkpoints").glob("step-*")
    parts = {"data": [], "index": []}
    for path in found:
        step, _, kind = path.name.removeprefix("step-").partition(".")
        if kind[:5] in ("data-", "index") and path.is_file():
            parts[kind[:5].rstrip("-")].append(int(step))
    return {kind: sorted(steps) for kind, steps in parts.items()}


def noted(folder):
    """The steps of the checkpoints that were written to the end, by the note."""
    lines = (folder / "checkpoints" / "checkpoint").read_text().splitlines()
    return [
        int(line.split("step-")[1].rstrip('"'))
        for line in lines
        if line.startswith("all_model_checkpoint_paths")
    ]
