"""A thousand bad inputs, each in a process with limits on memory, time and folders.

`grammars.py` damages a valid file or a flag. The command must then print at most one line
of error and exit with a status other than 0, or give the result of the undamaged input. It
must change no file outside its folder and leave no temporary file.

The name of a case, such as `safetensors-flip-3`, contains the seed of its damage, so
`pytest tests/attack -m attack -k safetensors-flip-3` repeats it.
"""

import collections
import contextlib
import csv
import dataclasses
import fcntl
import functools
import hashlib
import http.server
import itertools
import json
import os
import random
import re
import shutil
import tarfile
import threading

import children
import grammars
import h5py
import numpy as np
import pytest
from conftest import ROOT, make_once
from grammars import BYTES, JSON, PATHS, TEXT
from safetensors.numpy import load_file

pytestmark = pytest.mark.attack

MIX = {**BYTES, **PATHS}
TIMEOUT = 60  # Seconds after which a case fails.


# What a command may print and write if it accepts a damaged file. Each function compares
# the folder and the output of a case with those of the undamaged input, and returns the
# outcome.


def check_weights(folder, result, expected, damage):
    """Checks that the converted weights are those of the undamaged file.

    Formats without checksums cannot reveal that bits of a value changed. In these, as
    many values may differ as bytes of the file.
    """
    arrays, expected_arrays = load_file(folder / "out.safetensors"), expected["weights"]
    assert arrays.keys() == expected_arrays.keys()
    num_different = 0
    for name, array in expected_arrays.items():
        assert arrays[name].shape == array.shape
        assert np.isfinite(arrays[name]).all()
        num_different += np.count_nonzero(arrays[name] != array)
    assert num_different <= damage, f"{num_different} values differ"
    return "values" if num_different else "same"


def check_output(folder, result, expected, damage):
    """Checks that the command prints what it prints for the undamaged input."""
    assert result.stdout == expected["stdout"]
    return "same"


def check_runs(folder, result, expected, damage):
    """Checks that the list shows the run, or says that it is damaged."""
    return "reported" if "damaged" in result.stdout else "valid"


def check_prediction(folder, result, expected, damage):
    """Checks that each image has a class; damaged pixels may change which one."""
    for row in json.loads(result.stdout):
        assert abs(sum(c["probability"] for c in row["classes"]) - 1) < 1e-3
    return "same" if result.stdout == expected["stdout"] else "valid"


def check_run(folder, result, expected, damage):
    """Checks that a run ends with the weights of the undisturbed one."""
    weights = children.read_members(folder / "run/final.keras")["model.weights.h5"]
    assert weights == expected["run"]
    return "same"


def check_valid(folder, result, expected, damage):
    return "same" if result.stdout == expected["stdout"] else "valid"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file, and the command that reads it.

    Attributes:
        sample: Folder of `samples` that contains the valid file.
        target: Path of the file in this folder. A star stands for one file of several.
        command: Module and arguments. Paths are relative to the folder of the case.
        mutations: Functions of `grammars` by name.
        check: Function that checks the results of an accepted file.
        count: Number of cases.
    """

    sample: str
    target: str
    command: tuple[str, ...]
    mutations: dict
    check: object
    count: int


def make_conversion(name):
    return ("keras_resnet.convert", name, "out.safetensors")


def evaluate(*arguments):
    return ("keras_resnet.evaluate", *arguments, "--output=out")


PREDICT = ("keras_resnet.predict", "--model=net.keras", "--json", "--top=10")
EVALUATE = evaluate("--model=run")
RUNS = ("keras_resnet.runs", "run")
TRAIN = (
    "keras_resnet.train", "--model=cifar_resnet8", "--strategy=one_device", "--epochs=1",
    "--batch_size=240", "--model_dir=run", "--set", "checkpoint_every=2",
)  # fmt: skip
FOLDER = evaluate("--model=net.keras", "--dataset=folder:photos")
RECORDS = evaluate("--model=net.keras", "--dataset=tfrecord:tfrecord")
STUDY = ("keras_resnet.studies.complexity", "--report", "--images=200")
VERIFY = ("export.verify", "bundle")
STUDY_FOLDER = "studies/digits-images-200/complexity"
LATENCY = ("export.latency", "bundle", "--rounds=1", "--batches=1", "--threads=1")
EXPORT = (
    "export", "--model=net.keras", "--dataset=digits", "--formats=float32",
    "--output=bundle",
)  # fmt: skip

ZIP = {**MIX, "change_member": grammars.change_member}
HDF5 = {**MIX, "change_hdf5": grammars.change_hdf5}
NPZ = {**ZIP, "change_npy": grammars.change_npy}
SAFETENSORS = {**MIX, "change_safetensors": grammars.change_safetensors}
TREE = {**MIX, "change_tree": grammars.change_tree}
HASHED = {"change_hashed": grammars.change_hashed}
# Records whose checksums fit.
RECORD = {"change_record": grammars.change_record, "repeat": MIX["repeat"]}
DOCUMENT = {**JSON, **MIX, "replace_token": TEXT["replace_token"]}
LINES = {**TEXT, **MIX}
KINDS = {
    **{
        suffix.replace(".", "_"): Kind("weights", f"net.{suffix}", make_conversion(f"net.{suffix}"),
                                       mutations, check_weights, count)
        for suffix, mutations, count in (
            ("keras", ZIP, 90), ("weights.h5", HDF5, 70), ("h5", HDF5, 70),
            ("safetensors", SAFETENSORS, 70), ("npz", NPZ, 60), ("pth", MIX, 10),
        )
    },
    **{
        suffix: Kind("images", f"image.{suffix}", (*PREDICT, f"image.{suffix}"), MIX,
                     check_prediction, 25)
        for suffix in ("jpg", "png", "bmp", "gif", "webp")
    },
    "network": Kind("images", "net.keras", (*PREDICT, "image.png"), ZIP, check_output, 20),
    "class_folder": Kind("images", "photos/3/0.png", FOLDER, TREE, check_valid, 40),
    "run_json": Kind("run", "run/run.json", RUNS, DOCUMENT, check_runs, 60),
    "run_json_evaluated": Kind("run", "run/run.json", EVALUATE, DOCUMENT, check_output, 25),
    "run_json_resumed": Kind("killed", "run/run.json", TRAIN, DOCUMENT, check_run, 20),
    "metrics_csv": Kind("run", "run/metrics.csv", RUNS, LINES, check_runs, 30),
    "checkpoint_index": Kind("killed", "run/checkpoints/step-4/state.index", TRAIN, MIX,
                             check_run, 20),
    "checkpoint_data": Kind("killed", "run/checkpoints/step-4/state.data-00000-of-00001",
                            TRAIN, MIX, check_run, 20),
    "final_keras": Kind("run", "run/final.keras", TRAIN, ZIP, check_run, 15),
    "manifest": Kind("bundle", "bundle/manifest.json", VERIFY, DOCUMENT, check_output, 70),
    "manifest_timed": Kind("bundle", "bundle/manifest.json", LATENCY, DOCUMENT,
                           check_valid, 20),
    "manifest_replaced": Kind("bundle", "bundle/manifest.json", EXPORT, DOCUMENT,
                              check_valid, 10),
    "check_npz": Kind("bundle", "bundle/check.npz", VERIFY, HASHED, check_output, 20),
    "labels": Kind("bundle", "bundle/labels.txt", VERIFY, LINES, check_output, 10),
    "tflite": Kind("bundle", "bundle/float32.tflite", VERIFY, {**MIX, **HASHED},
                   check_output, 40),
    "study_json": Kind("studies", f"{STUDY_FOLDER}/study.json", STUDY, DOCUMENT,
                       check_valid, 30),
    "study_csv": Kind("studies", f"{STUDY_FOLDER}/complexity.csv", STUDY, LINES,
                      check_valid, 30),
    "tfrecord": Kind("records", "tfrecord/validation-00000-of-00001", RECORDS,
                     {n: f for n, f in MIX.items() if n != "repeat"}, check_output, 30),
    "record": Kind("records", "tfrecord/validation-00000-of-00001", RECORDS, RECORD,
                   check_valid, 20),
    "record_labels": Kind("records", "tfrecord/labels.txt", RECORDS, LINES, check_valid, 15),
    "record_index": Kind("records", "home/.keras/records/*.npz", RECORDS, NPZ,
                         check_output, 25),
}  # fmt: skip


class Case(collections.namedtuple("Case", "kind mutation seed")):
    """A bad input. The seed determines the damage."""

    def __str__(self):
        return "-".join(map(str, self))


def list_cases():
    for name, kind in KINDS.items():
        mutations = itertools.cycle(kind.mutations)
        for i, mutation in zip(range(kind.count), mutations, strict=False):
            yield Case(name, mutation, i // len(kind.mutations))


def select(cases):
    """Returns the cases as parameters of pytest. Every eighth one has the mark `ci`."""
    return [
        pytest.param(case, id=str(case), marks=[pytest.mark.ci] if i % 8 == 0 else [])
        for i, case in enumerate(cases)
    ]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Folder that contains a folder with valid files for each `Kind.sample`."""
    return make_once(tmp_path_factory, "samples", make_samples)


def make_samples(samples):
    from keras.src.legacy.saving import legacy_h5_format
    from PIL import Image

    from keras_resnet import convert

    with tarfile.open(ROOT / "tests/fixtures/v0.1.0.tar.xz") as file:
        file.extractall(samples, filter="data")
    old = samples / "v0.1.0"
    weights, run, images = (samples / name for name in ("weights", "run", "images"))
    for folder in (weights, images, samples / "studies", samples / "records"):
        folder.mkdir()
    for suffix in ("keras", "weights.h5", "safetensors"):
        shutil.copy(old / f"weights/resnet8-a.{suffix}", weights / f"net.{suffix}")
    # Files of other software lack the pixel format, so their networks need three channels.
    path = weights / "b.safetensors"
    convert.convert(str(old / "weights/resnet8-b.keras"), str(path))
    state = load_file(path)
    state["conv1.weight"] = np.repeat(state["conv1.weight"], 3, axis=1)
    np.savez(weights / "net.npz", **state)
    network = convert.convert(str(weights / "net.npz"), str(weights / "rgb.keras"))
    with h5py.File(weights / "net.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
        # Networks of keras.applications have biases in their convolutions.
        group = file["conv1_conv"]
        group["conv1_conv/bias"] = np.zeros(16, "f4")
        names = [*group.attrs["weight_names"], "conv1_conv/bias"]
        group.attrs["weight_names"] = names
    with contextlib.suppress(ModuleNotFoundError):
        import torch

        torch.save(
            {k: torch.from_numpy(v) for k, v in state.items()}, weights / "net.pth"
        )
    (old / "studies").rename(samples / "studies/studies")
    (old / "tfrecord").rename(samples / "records/tfrecord")
    labels = "".join(f"{label}\n" for label in range(10))
    (samples / "records/tfrecord/labels.txt").write_text(labels)

    for name, faults in (("run", ()), ("killed", [("kill_after_step", 5)])):
        (samples / name).mkdir()
        result = children.run_child(*TRAIN, cwd=samples / name, faults=faults)
        assert result.returncode == (children.KILLED if faults else 0), result.stderr
    network = run / "run/final.keras"
    bundle = ("--output=bundle", "--formats=float32,int8")
    (samples / "bundle").mkdir()
    result = children.run_child(
        "export", f"--model={network}", *bundle, cwd=samples / "bundle"
    )
    assert result.returncode == 0, result.stderr
    for folder in (images, samples / "records", samples / "bundle"):
        shutil.copy(network, folder / "net.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    image = Image.fromarray(pixels)
    for suffix in ("jpg", "png", "bmp", "gif", "webp"):
        image.save(images / f"image.{suffix}")
    for label in range(10):
        (images / f"photos/{label}").mkdir(parents=True)
        image.save(images / f"photos/{label}/0.png")


def run_case(folder, command, faults=(), environment=()):
    """Runs a command in `folder/work`, which is the only folder that it may change.

    Raises:
        AssertionError: If the process changes other files, is ended by a signal, leaves
            temporary files or prints what a terminal would interpret.
    """
    guard = folder / "guard"
    guard.mkdir(exist_ok=True)
    (guard / "secret.txt").write_text(SECRET)
    work = folder / "work"
    faults = [("confine", str(work), environment), *faults]
    result = children.run_child(*command, timeout=TIMEOUT, cwd=work, faults=faults)
    if result.returncode not in (0, 1, 2, 143) or "Traceback" in result.stderr:
        pytest.fail(
            f"status {result.returncode}: {result.stderr[-2000:]}", pytrace=False
        )
    assert sorted(os.listdir(folder)) == ["guard", "work"]
    assert os.listdir(guard) == ["secret.txt"]
    assert (guard / "secret.txt").read_text() == SECRET
    names = [*list_names(work)]
    assert not [name for name in names if ".part" in name or "pwned" in name]
    # TensorFlow removes these at the exit of a process that is no fork.
    generated = ("__autograph_generated", "__pycache__")
    assert not [n for n in os.listdir(work / "tmp") if not n.startswith(generated)]
    for output in (result.stdout, result.stderr):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", output)
        assert SECRET not in output
    return result


SECRET = "the secret outside"


def list_names(folder):
    for parent, folders, files in os.walk(folder):
        yield from (
            os.path.relpath(os.path.join(parent, n), folder) for n in folders + files
        )


def find_outcome(result, has_images=False):
    """Returns how a command refused its input, or `None` if it accepted the input.

    With `has_images`, libjpeg and other libraries may print lines before the error.
    """
    if result.returncode in (0, 143):
        return None
    if "wrong" in result.stdout and not result.stderr:
        return "wrong"  # Verdict of `export.verify`.
    if result.stderr.startswith("usage: "):  # From argparse.
        return "usage"
    lines = result.stderr.splitlines()
    lines = [line for line in lines if not line.startswith("Downloading ")]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and (has_images or lines == errors), result.stderr
    return "refused"


def snapshot(work, result):
    """Returns the results of the undamaged input, with which others are compared."""
    run, target = work / "run/final.keras", work / "out.safetensors"
    return {
        "stdout": result.stdout,
        "weights": load_file(target) if target.exists() else None,
        "run": children.read_members(run)["model.weights.h5"] if run.exists() else None,
    }


@pytest.fixture(scope="module")
def find_expected(samples, tmp_path_factory):
    """Function that returns the results of the undamaged input of a kind."""

    @functools.cache
    def find(sample, command):
        folder = tmp_path_factory.mktemp("undamaged")
        shutil.copytree(samples / sample, folder / "work", symlinks=True)
        result = run_case(folder, command)
        assert result.returncode == 0, result.stderr
        return snapshot(folder / "work", result)

    return find


@pytest.mark.parametrize("case", select(list_cases()))
def test_a_bad_file(case, samples, find_expected, results, tmp_path):
    if case.kind == "pth":
        pytest.importorskip("torch")
    kind = KINDS[case.kind]
    work = tmp_path / "work"
    shutil.copytree(samples / kind.sample, work, symlinks=True)
    expected = find_expected(kind.sample, kind.command)
    if "*" in kind.target:  # The command itself writes the file.
        run_case(tmp_path, kind.command)
    path = min(work.glob(kind.target))
    content = path.read_bytes()
    kind.mutations[case.mutation](path, random.Random(str(case)))
    result = run_case(tmp_path, kind.command)
    outcome = find_outcome(result, kind.sample == "images")
    if not outcome:
        outcome = kind.check(work, result, expected, count_damage(path, content))
    results.append((*case, outcome))
    shutil.rmtree(tmp_path)


def count_damage(path, content):
    """Returns how many values of a file may differ, because their bytes do."""
    if not path.is_file() or path.name.endswith(
        (".keras", ".npz")
    ):  # These have checksums.
        return 0
    damaged = path.read_bytes()
    return sum(a != b for a, b in zip(damaged, content, strict=False))


# Flags and arguments. Each command is valid; a case adds a flag with a bad value, or puts
# the value in place of the star. A training run stops after its first step.

MODEL = "--model=net.keras"
COMMANDS = {
    "train": (*TRAIN[:2], "--strategy=one_device", "--set=batch_size=240", "--epochs=1", "*"),
    "evaluate": (*evaluate(MODEL), "*"),
    "predict": (*PREDICT, "image.png", "*"),
    "convert": ("keras_resnet.convert", "net.keras", "out.safetensors", "*"),
    "convert_source": ("keras_resnet.convert", "*", "out.safetensors"),
    "convert_target": ("keras_resnet.convert", "net.keras", "*"),
    "runs": ("keras_resnet.runs", "*"),
    "complexity": ("keras_resnet.complexity", "--model=cifar_resnet8", "*"),
    "export": (*EXPORT, "*"),
    "verify": ("export.verify", "*"),
    "latency": ("export.latency", "bundle", "*"),
    "study": ("keras_resnet.studies.responses", "--depths=8,14", "--seeds=1", "--images=50",
              "--epochs=1", "--workers=0", "*"),
}  # fmt: skip


def list_flags():
    """Returns a dict from the names of commands to dicts from flags to types."""
    from export.options import ExportOptions
    from keras_resnet import complexity, convert, evaluate, predict, runs, train
    from keras_resnet.spec import Execution, Recipe, RunOptions
    from keras_resnet.studies.lib import Options
    from keras_resnet.support.options import list_options

    options = {
        "train": (RunOptions, train.RecipeFlags, train.CommandFlags),
        "evaluate": (evaluate.EvaluationOptions,),
        "predict": (predict.PredictionOptions,),
        "convert": (convert.ConversionOptions,),
        "runs": (runs.ListOptions,),
        "complexity": (complexity.ComplexityOptions,),
        "export": (ExportOptions,),
        "study": (Options,),
    }
    flags = {
        command: {
            f"--{field.name}": kind for c in classes for field, kind in list_options(c)
        }
        for command, classes in options.items()
    }
    fields = [f.name for c in (Recipe, Execution) for f in dataclasses.fields(c)]
    flags["train"] |= {f"--set={name}": float for name in fields}
    flags["latency"] = {"--rounds": int, "--batches": tuple, "--threads": tuple}
    return {name: {"": str, **flags.get(name, {})} for name in COMMANDS}


def draw_value(kind, rng):
    """Returns a bad value for a flag of a type."""
    numbers = [*grammars.NUMBERS, "x", "", "nan", "inf", "1e999", "0x10", "٣", "1,,2"]
    paths = [*PATHS, "/dev/zero", "/dev/full", ".", "net.keras/x"]
    texts = [t for t in grammars.TEXTS if "\0" not in t and t[:1] not in ("/", ".")]
    texts += [
        "\udcff\udcfe",
        "folder:fifo",
        "folder:link",
        "tfrecord:.",
        "tfrecord:device",
    ]
    texts += [f"{prefix}:{path}" for prefix in ("folder", "tfrecord") for path in paths]
    values = {bool: ["maybe", "2", *texts[:4]], int: numbers, float: numbers}
    return str(rng.choice(values.get(kind, [*texts, *paths, *numbers])))


def list_flag_cases():
    """Returns about 400 cases. The mutation of a case is the name of its flag."""
    for command, flags in list_flags().items():
        for flag, kind in flags.items():
            num_values = 20 if not flag else 2 if "--set" in flag else 6
            for i in range(2 if kind is bool else num_values):
                yield Case(command, flag or "argument", i)


FLAG_TYPES = list_flags()


@pytest.mark.parametrize("case", select(list_flag_cases()))
def test_a_bad_flag(case, samples, results, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(samples / "images", work, symlinks=True)
    shutil.copytree(samples / "bundle/bundle", work / "bundle")
    rng = random.Random(str(case))
    for name, mutate in PATHS.items():
        (work / name).touch()
        mutate(work / name, rng)
    flag = "" if case.mutation == "argument" else case.mutation
    value = draw_value(FLAG_TYPES[case.kind][flag], rng)
    argument = f"{flag}={value}" if flag else value
    command = [argument if a == "*" else a for a in COMMANDS[case.kind]]
    # With the valid flags alone, a study takes fewer steps than these.
    last_step = {"train": 1, "study": 20}.get(case.kind)
    faults = [("call_after_step", last_step, "_terminate")] if last_step else []
    result = run_case(tmp_path, command, faults)
    results.append((*case, find_outcome(result) or "accepted"))
    shutil.rmtree(tmp_path)


# Addresses of workers and of downloads.

CLUSTER = {
    "cluster": {"worker": ["localhost:1"]},
    "task": {"type": "worker", "index": 0},
}
TF_CONFIG = {
    **JSON,
    **TEXT,
    **{n: BYTES[n] for n in ("truncate", "flip", "other_type")},
}


def list_address_cases():
    for mutations, kind, count in ((TF_CONFIG, "tf_config", 48), (ANSWERS, "url", 40)):
        for i, mutation in zip(range(count), itertools.cycle(mutations), strict=False):
            yield Case(kind, mutation, i // len(mutations))


class Answers(http.server.BaseHTTPRequestHandler):
    """Server whose answer to `/MUTATION/net.safetensors` is wrong as the name says."""

    content = b""

    def do_GET(self):
        name = self.path.split("/")[1]
        with contextlib.suppress(OSError):
            getattr(self, f"answer_{name}")()

    def log_message(self, *args):
        pass

    def start(self, status=200, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def answer_right(self):
        self.start(Content_Length=len(self.content))
        self.wfile.write(self.content)

    def answer_short(self):
        self.start(Content_Length=2 * len(self.content))
        self.wfile.write(self.content)

    def answer_long(self):
        self.start(Content_Length=len(self.content) // 2)
        self.wfile.write(self.content)

    def answer_huge(self):
        self.start(Content_Length=2**62)
        self.wfile.write(self.content)

    def answer_negative(self):
        self.start(Content_Length=-5)
        self.wfile.write(self.content)

    def answer_endless(self):
        self.start()
        while True:
            self.wfile.write(bytes(2**20))

    def answer_chunks(self):
        self.start(Transfer_Encoding="chunked")
        self.wfile.write(b"5\r\nabcde\r\nFFFFFFFFFFFFFFFFFF\r\n")

    def answer_loop(self):
        self.start(302, Location=self.path)

    def answer_file(self):
        self.start(302, Location="file:///etc/passwd")

    def answer_error(self):
        self.start(500)

    def answer_nothing(self):
        pass

    def answer_noise(self):
        self.wfile.write(b"\x00\xff" * 9999)

    def answer_header(self):
        self.start(X=b"x" * 10**6)


ANSWERS = {
    n.removeprefix("answer_"): None for n in dir(Answers) if n.startswith("answer_")
}


@pytest.fixture(scope="module")
def server(samples):
    Answers.content = (samples / "weights/net.safetensors").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("case", select(list_address_cases()))
def test_a_bad_address(case, samples, server, results, tmp_path):
    rng, work = random.Random(str(case)), tmp_path / "work"
    work.mkdir()
    if case.kind == "url":
        name = rng.choice(
            ["net.safetensors", "net.safetensors", "", "..", "%2e%2e%2f", "x.h5"]
        )
        digest = hashlib.sha256(Answers.content).hexdigest()
        url = f"{server}/{case.mutation}/{name}"
        command, faults, environment = (
            (*make_conversion(url), f"--sha256={digest}"),
            (),
            (),
        )
    else:
        path = tmp_path / "tf_config"
        path.write_text(json.dumps(CLUSTER))
        TF_CONFIG[case.mutation](path, rng)
        text = os.fsdecode(path.read_bytes().replace(b"\0", b""))
        path.unlink()
        environment = (("TF_CONFIG", text),)
        faults = [("call_after_step", 1, "_terminate")]
        command = (*TRAIN[:2], "--strategy=multi_worker", "--model_dir=run")
    result = run_case(tmp_path, command, faults, environment)
    results.append((*case, find_outcome(result) or "accepted"))
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def results():
    """List of rows: kind, mutation, seed, outcome. The rows are added to a CSV file."""
    rows = []
    yield rows
    if path := os.environ.get("ATTACK_RESULTS"):
        with open(path, "a+", newline="") as file:
            fcntl.flock(
                file, fcntl.LOCK_EX
            )  # Two workers of pytest-xdist write the file.
            file.seek(0)
            outcomes = {Case(*row[:3]): row[3] for row in csv.reader(file)}
            outcomes |= {Case(*map(str, row[:3])): row[3] for row in rows}
            file.truncate(0)
            table = [
                (*c, o) for c, o in sorted(outcomes.items()) if str(c) in CASE_NAMES
            ]
            csv.writer(file, lineterminator="\n").writerows(
                [("kind", "mutation", "seed", "outcome"), *table]
            )


CASE_NAMES = {
    str(case) for case in (*list_cases(), *list_flag_cases(), *list_address_cases())
}
