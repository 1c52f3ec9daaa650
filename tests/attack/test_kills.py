"""A hundred kills, full disks, and races of two, for each command that writes files.

After each of them the same command must end like one that nothing disturbed, and leave no
other file. Half of the kills come just before a change of the file system, and the others
after a random amount of CPU time. Their seeds are their numbers.
"""

import functools
import hashlib
import http.server
import json
import random
import shutil
import tarfile
import threading

import pytest
from children import KILLED, Child, read_members
from conftest import ROOT, assert_one_line, make_once

pytestmark = pytest.mark.attack

NETWORK = "../inputs/network.keras"
COMMANDS = {
    "train": ("keras_resnet.train", "--model=cifar_resnet8", "--strategy=one_device",
              "--epochs=1", "--batch_size=240", "--model_dir=run", "--set=checkpoint_every=1"),
    "evaluate": ("keras_resnet.evaluate", f"--model={NETWORK}", "--dataset=digits",
                 "--output=out", "--predictions=rows.csv"),
    "convert": ("keras_resnet.convert", NETWORK, "net.safetensors"),
    "convert_keras": ("keras_resnet.convert", "../inputs/net.weights.h5", "net.keras"),
    "download": ("keras_resnet.convert", "URL/net.safetensors", "net.safetensors",
                 "--sha256=HASH"),
    "export": ("export", f"--model={NETWORK}", "--dataset=digits", "--formats=float32",
               "--output=bundle"),
    "study": ("keras_resnet.studies.responses", "--depths=8,14", "--seeds=1", "--images=50",
              "--epochs=1", "--workers=0"),
}  # fmt: skip
NUM_KILLS = {"train": 24, "evaluate": 12, "convert": 14, "convert_keras": 14,
             "download": 12, "export": 14, "study": 10}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folder with the files that the commands read."""

    def make(folder):
        with tarfile.open(ROOT / "tests/fixtures/v0.1.0.tar.xz") as file:
            file.extractall(folder, filter="data")
        old = folder / "v0.1.0"
        (old / "finished/final.keras").rename(folder / "network.keras")
        for suffix in ("weights.h5", "safetensors"):
            (old / f"weights/resnet8-a.{suffix}").rename(folder / f"net.{suffix}")

    return make_once(tmp_path_factory, "inputs", make)


@pytest.fixture(scope="module")
def start(inputs):
    """Function that starts a command of `COMMANDS` in `folder/work`."""
    handler = functools.partial(QuietHandler, directory=str(inputs))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, path = f"http://127.0.0.1:{server.server_port}", inputs / "net.safetensors"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()

        def start(name, folder, *faults):
            if not (folder / "inputs").exists():
                (folder / "inputs").symlink_to(inputs)
            command = [
                a.replace("URL", url).replace("HASH", digest) for a in COMMANDS[name]
            ]
            for subfolder in ("home", "tmp"):
                (folder / "work" / subfolder).mkdir(exist_ok=True, parents=True)
            faults = [*faults, ("confine", str(folder / "work"))]
            return Child(*command, cwd=folder / "work", faults=faults)

        yield start
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def find_undisturbed(start, tmp_path_factory):
    """Function that returns the undisturbed results of a command.

    It also returns the CPU seconds from the start to each change of the file system.
    """

    @functools.cache
    def find(name):
        def make(folder):
            result = start(
                name, folder, ("kill_at_change", 0, str(folder / "log"))
            ).wait()
            assert result.returncode == 0, result.stderr

        folder = make_once(tmp_path_factory, f"undisturbed-{name}", make)
        seconds = [float(line) for line in (folder / "log").read_text().split()]
        return read_results(folder / "work"), seconds

    return find


def read_results(folder):
    """Returns the contents of all files, or `None` for those with dates and times."""
    contents = {}
    for path in folder.rglob("*"):
        # TensorFlow removes these files at the exit of an undisturbed process.
        if path.is_dir() or path.name.startswith("__autograph_generated_file"):
            continue
        content = read_members(path) if path.suffix == ".keras" else path.read_bytes()
        if path.suffix == ".safetensors":  # The order of its metadata is random.
            size = 8 + int.from_bytes(content[:8], "little")
            content = json.loads(content[8:size]), content[size:]
        has_times = path.suffix in (".json", ".html", ".md")
        contents[str(path.relative_to(folder))] = None if has_times else content
    return contents


def assert_undisturbed(results, expected):
    assert sorted(results) == sorted(expected)
    assert not [name for name, content in expected.items() if results[name] != content]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(name, i, marks=[pytest.mark.ci] if i == 0 else [])
        for name, count in NUM_KILLS.items()
        for i in range(count)
    ],
)
def test_a_killed_command_ends_like_an_undisturbed_one(
    name, number, start, find_undisturbed, tmp_path
):
    expected, seconds = find_undisturbed(name)
    rng = random.Random(f"{name}-{number}")
    fault = ("kill_at_change", rng.randint(1, len(seconds)), str(tmp_path / "log"))
    if number % 2:
        fault = ("kill_after_seconds", rng.uniform(0, 0.8) * seconds[-1])
    result = start(name, tmp_path, fault).wait()
    assert result.returncode == KILLED, result.stderr
    result = start(name, tmp_path).wait()
    assert result.returncode == 0, result.stderr
    assert_undisturbed(read_results(tmp_path / "work"), expected)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("free_bytes", [0, 20_000, 250_000])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_loses_nothing(
    name, free_bytes, start, find_undisturbed, small_disk
):
    filler_path = small_disk / "filler"
    fill = ("_fill_disk", str(filler_path), free_bytes)
    result = start(name, small_disk, fill).wait()
    if result.returncode:
        assert_one_line(result)
    filler_path.unlink()
    result = start(name, small_disk).wait()
    assert result.returncode == 0, result.stderr
    assert_undisturbed(read_results(small_disk / "work"), find_undisturbed(name)[0])


@pytest.mark.ci
@pytest.mark.parametrize("name", COMMANDS)
def test_a_race_of_two_has_one_whole_result(name, start, find_undisturbed, tmp_path):
    """The second process may be refused, with a line that names the first."""
    processes = [start(name, tmp_path) for _ in range(2)]
    results = [process.wait() for process in processes]
    assert any(result.returncode == 0 for result in results), results
    for result in results:
        if result.returncode:
            assert_one_line(result, "nother process")
    assert_undisturbed(read_results(tmp_path / "work"), find_undisturbed(name)[0])
