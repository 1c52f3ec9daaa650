"""Tests of the code that all studies share: flags, jobs, tables and reports."""

import base64
import csv
import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import ROOT, assert_one_line, run_program

from keras_resnet.studies import gradients, identity, lesion, responses, schedule
from keras_resnet.studies.all import STUDIES, run_all
from keras_resnet.studies.degradation import STUDY as DEGRADATION
from keras_resnet.studies.lib import jobs, style
from keras_resnet.studies.lib.study import Options, format_mean, make_job_lister
from keras_resnet.studies.lib.tables import (
    file_stem,
    read_table,
    select_column,
    write_table,
)
from keras_resnet.support.errors import InputError

# The study `schedule` with two of its four patiences.
PATIENCES = (1, 2)
STUDY = dataclasses.replace(
    schedule.STUDY, list_jobs=make_job_lister(depth=None, patience=PATIENCES, seed=None)
)


class FixedOptions(Options):
    """Options with few images, on which the test error is always 100 %.

    The network learns classes 0 and 1, but all test labels are 9.
    """

    def load(self):
        digits = jobs.load_subset(self.dataset)
        test = digits.test.take(slice(8))
        return dataclasses.replace(
            digits,
            train=digits.train.take(np.flatnonzero(digits.train.labels < 2)[:64]),
            test=dataclasses.replace(test, labels=np.full(8, 9, np.int32)),
        )


@pytest.fixture(scope="module")
def run_options(tmp_path_factory):
    """Options of a finished run of `STUDY`. Tests read the results."""
    folder = tmp_path_factory.mktemp("studies")
    options = FixedOptions(
        depths=(8,), seeds=1, epochs=5, output=str(folder), workers=0
    )
    STUDY.run(options)
    return options


def test_mean_and_deviation_are_formatted():
    # The sample standard deviation of 1, 2 and 3 is 1.
    assert format_mean([1, 2, 3]) == "2 ± 1 % (n = 3)"
    assert format_mean([4.5], " points") == "4.5 points (n = 1)"


def test_a_table_is_read_as_written(tmp_path):
    rows = [{"kind": "res", "depth": 8, "error": 0.5}, {"kind": "a, b", "depth": 9}]
    write_table(tmp_path / "t.csv", rows)
    assert read_table(tmp_path / "t.csv") == [rows[0], {**rows[1], "error": ""}]
    assert select_column(rows, "depth", kind="res") == [8]


def test_a_file_stem_has_no_empty_settings_and_no_special_characters():
    settings = {"": "resnet8", "epochs": 24, "recipe": None, "dataset": "folder:a/b c"}
    assert file_stem(settings) == "resnet8-epochs-24-dataset-folder_a_b_c"


def assert_errors_of_run(rows, run_folder):
    """Asserts that rows contain the errors that training wrote to `metrics.csv`."""
    lines = csv.DictReader((run_folder / "metrics.csv").read_text().splitlines())
    for row, line in zip(rows, lines, strict=True):
        errors = [
            100 - 100 * float(line[name]) for name in ("accuracy", "val_accuracy")
        ]
        assert [row["training_error"], row["test_error"]] == pytest.approx(
            errors, abs=1e-4
        )


def test_a_study_writes_table_figure_and_report(run_options):
    folder = f"{run_options.folder}/schedule"
    rows = read_table(f"{folder}/schedule.csv")
    assert [(row["depth"], row["patience"], row["epoch"]) for row in rows] == [
        (8, patience, epoch) for patience in PATIENCES for epoch in range(1, 6)
    ]
    # The error never falls after the first epoch, so the rate drops after each epoch or
    # after every two epochs.
    assert select_column(rows, "drops", patience=1) == [0, 0, 1, 2, 3]
    assert select_column(rows, "drops", patience=2) == [0, 0, 0, 1, 1]
    for row in rows:
        rate = 0.1 * 0.1 ** row["drops"]
        assert row["learning_rate"] == pytest.approx(rate, rel=1e-4)
    run_name = "cifar_resnet8-epochs-5-schedule-plateau-warmup-0.0-patience-2-seed-0"
    assert_errors_of_run(rows[5:], pathlib.Path(run_options.folder, "runs", run_name))
    with open(f"{folder}/schedule.png", "rb") as file:
        png = file.read()
    assert png.startswith(b"\x89PNG")
    page = pathlib.Path(folder, "report.html").read_text("utf-8")
    assert base64.b64encode(png).decode() in page
    assert all(text in page.replace("&#x27;", "'") for text in STUDY.expectations)
    # Both test errors are 100 %, but the longer patience has a lower training error.
    verdicts = re.findall('class="(yes|no)">(Confirmed|Not confirmed)</span>', page)
    assert verdicts == [("no", "Not confirmed"), ("yes", "Confirmed")]
    assert 'src="http' not in page and 'href="http' not in page


def test_the_command_of_a_report_contains_all_changed_options(run_options):
    assert shlex.split(STUDY.format_command(run_options)) == [
        "python", "-m", "keras_resnet.studies.schedule", "--depths=8", "--seeds=1",
        "--epochs=5", f"--output={run_options.output}", "--workers=0",
    ]  # fmt: skip
    assert STUDY.format_command(STUDY.defaults).endswith(".schedule")


def test_measured_jobs_are_not_measured_again(run_options, monkeypatch):
    monkeypatch.setattr(Options, "train", None)  # Training would fail.
    STUDY.run(run_options)


def test_an_interrupted_study_resumes(run_options, monkeypatch, tmp_path, capsys):
    options = dataclasses.replace(run_options, output=str(tmp_path))
    shutil.copytree(f"{run_options.folder}/runs", f"{options.folder}/runs")
    finished_jobs = []
    measure = jobs._measure

    def measure_one_job(study, job):
        if len(finished_jobs) == 1:
            raise KeyboardInterrupt
        finished_jobs.append(job)
        return measure(study, job)

    monkeypatch.setattr(jobs, "_measure", measure_one_job)
    with pytest.raises(KeyboardInterrupt):
        STUDY.run(options)
    table_path = tmp_path / "digits/schedule/schedule.csv"
    assert not table_path.exists()
    # The networks have been trained before. Training would fail.
    monkeypatch.setattr("keras_resnet.training.loop.Loop.train", None)
    resumed_jobs = []
    monkeypatch.setattr(
        jobs, "_measure", lambda *args: resumed_jobs.append(args[1]) or measure(*args)
    )
    STUDY.run(options)
    assert "1 of 2 jobs measured before" in capsys.readouterr().out
    assert [job["patience"] for job in finished_jobs + resumed_jobs] == [1, 2]
    # The resumed study has the same table as the study that was not interrupted.
    original_path = pathlib.Path(run_options.folder, "schedule/schedule.csv")
    assert table_path.read_bytes() == original_path.read_bytes()


def test_a_trained_network_is_measured_by_several_studies(trained_run, monkeypatch):
    # The arguments of `train`, and thus the run folder, are the same in all studies.
    monkeypatch.setattr(Options, "train", lambda self, model, seed: str(trained_run))
    job = {"kind": "res", "depth": 8, "seed": 0}
    rows = DEGRADATION.measure(Options(), job)
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert_errors_of_run(rows, trained_run)
    network = keras.models.load_model(trained_run / "final.keras")
    norm = network.get_layer("conv2_block1_1_bn").output
    images = Options().load().train.images[:1000].astype("float32")
    response = np.asarray(keras.Model(network.input, norm)(images))
    _, second_row, *_ = responses.STUDY.measure(Options(), job)
    assert second_row["layer"] == 2
    assert second_row["deviation"] == pytest.approx(response.std(), rel=1e-4)


def test_a_report_is_made_from_an_existing_table(run_options, tmp_path):
    options = dataclasses.replace(run_options, output=str(tmp_path))
    folder = tmp_path / "digits/degradation"
    folder.mkdir(parents=True)
    rows = [
        {"kind": kind, "depth": depth, "seed": 0, "epoch": epoch + 1,
         "training_error": error, "test_error": error + 1}
        for kind, depth, errors in (("plain", 8, (50, 20)), ("res", 8, (50, 19)),
                                    ("plain", 56, (90, 40)), ("res", 56, (60, 5)))
        for epoch, error in enumerate(errors)
    ]  # fmt: skip
    write_table(folder / "degradation.csv", rows)
    record = json.loads(
        pathlib.Path(run_options.folder, "schedule/study.json").read_text("utf-8")
    )
    assert record.pop("format") == 1  # Files of keras_resnet 0.1.0 have no format.
    (folder / "study.json").write_text(json.dumps(record))
    process = run_program(
        "keras_resnet.studies.degradation", "--report", f"--output={options.output}"
    )
    assert process.returncode == 0, process.stderr
    assert (
        "training error 20 % (n = 1) with 8 layers, 40 % (n = 1) with 56"
        in process.stdout
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "degradation.csv", "degradation.png", "report.html", "study.json"
    ]  # fmt: skip
    page = (folder / "report.html").read_text("utf-8")
    assert STUDY.format_command(run_options) in page


def test_a_damaged_table_is_reported_in_one_line(run_options, tmp_path):
    folder = tmp_path / "digits/schedule"
    folder.mkdir(parents=True)
    shutil.copy(f"{run_options.folder}/schedule/study.json", folder)
    options = dataclasses.replace(run_options, output=str(tmp_path))
    for content in ("", "depth,patience\n", "depth,patience,seed\n8,1,0\n", "\0\n"):
        (folder / "schedule.csv").write_text(content)
        with pytest.raises(InputError, match=r"schedule.csv") as caught:
            STUDY.run(options, report_only=True)
        assert "\n" not in str(caught.value)
    shutil.copy(f"{run_options.folder}/schedule/schedule.csv", folder)
    for content, pattern in (
        ("{}", "study.json.* damaged"),
        ("[]", "study.json.* damaged"),
        ('{"format": 9, "options": {}}', "study.json has format 9.* formats above 1"),
    ):
        (folder / "study.json").write_text(content)
        with pytest.raises(InputError, match=pattern):
            STUDY.run(options, report_only=True)
    assert not (folder / "report.html").exists()


def test_one_report_contains_several_studies(run_options, monkeypatch):
    studies = STUDY, dataclasses.replace(STUDY, title="A & B")
    monkeypatch.setattr("keras_resnet.studies.all.STUDIES", studies)
    path = run_all({"output": run_options.output}, report_only=True)
    page = pathlib.Path(path).read_text("utf-8")
    assert page.count("<img") == 2
    assert '<a href="#1">A &amp; B</a>: 1 of 2 confirmed' in page
    assert '<h2 id="1">' in page


def measure_or_fail(job):
    """Fails for seed 0. Workers can unpickle this function, because it is global."""
    if job["seed"] == 0:
        raise FloatingPointError("The loss is no longer a number")
    return [{"error": job["seed"]}]


@pytest.mark.slow
def test_other_jobs_are_finished_when_one_fails():
    jobs_by_name = {str(seed): {"seed": seed} for seed in range(3)}
    results = []
    with pytest.raises(FloatingPointError, match=r"seed 0: The loss is no longer"):
        for name, rows in jobs.measure_jobs(measure_or_fail, jobs_by_name, 1):
            results.append((name, rows))
    assert sorted(results) == [("1", [{"error": 1}]), ("2", [{"error": 2}])]


class Crash:
    """Unpickling this object ends the process."""

    def __reduce__(self):
        return os._exit, (1,)


def test_the_death_of_a_worker_is_reported(monkeypatch):
    monkeypatch.setattr(jobs, "_start_worker", int)  # Imports no TensorFlow.
    with pytest.raises(InputError, match=r"A worker process died.*--workers=1"):
        list(jobs.measure_jobs(len, {"": {"seed": Crash()}}, 1))


def test_a_job_with_a_damaged_file_is_measured_again(run_options, tmp_path):
    options = dataclasses.replace(run_options, output=str(tmp_path))
    shutil.copytree(run_options.folder, options.folder)
    path = min(tmp_path.glob("digits/schedule/jobs/*.csv"))
    original_content = path.read_bytes()
    path.write_text("")
    STUDY.run(options)
    assert path.read_bytes() == original_content


@pytest.mark.parametrize(
    ("study", "depths", "pattern"),
    [
        (lesion, (8, 14), "from 14 to 362"),
        (lesion, (14, 368), "from 14 to 362"),
        (gradients, (368,), "from 8 to 362"),
        (identity, (8, 368), "from 8 to 362"),
        (responses, (8, 368), "from 8 to 362"),
    ],
)
def test_unsupported_depths_are_rejected(study, depths, pattern, tmp_path):
    options = Options(depths=depths, output=str(tmp_path / "out"))
    with pytest.raises(InputError, match=pattern):
        study.STUDY.run(options)
    assert not (tmp_path / "out").exists()


def test_depths_at_the_limits_are_accepted_and_sorted():
    for study, limits in ((lesion.STUDY, (14, 362)), (responses.STUDY, (8, 362))):
        options = study.check_options(Options(depths=(*limits[::-1], limits[0])))
        assert options.depths == limits


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": (8, 21)}, ["6n+2", "resnet21"]),
        ({"depths": (8,)}, ["at least 2 depths", "Received: --depths=8"]),
        ({"dataset": "digit"}, ["digit"]),
        ({"images": 2000}, ["from 5 to 1437", "images=2000"]),
        ({"images": 4}, ["from 5 to 1437", "images=4"]),
        ({"recipe": "paper"}, ["Did you mean 'paper_cifar'"]),
    ],
)
def test_invalid_options_are_rejected_before_training(changes, words, tmp_path):
    options = Options(output=str(tmp_path / "out"))
    with pytest.raises(InputError) as caught:
        DEGRADATION.run(dataclasses.replace(options, **changes))
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("study", "flags", "words"),
    [
        (
            "degradation",
            ["--depths=8,x"],
            ["must be integers", "--depths=8,20", "'8,x'"],
        ),
        ("degradation", ["--report"], ["cannot be read", "degradation.csv"]),
        ("degradation", ["20"], ["Only flags are accepted"]),
        # One of the studies does not support a depth.
        (
            "all",
            ["--depths=8,20"],
            ["lesion", "from 14 to 362", "Received: --depths=8,20"],
        ),
    ],
)
def test_invalid_flags_are_rejected_in_one_line(study, flags, words, tmp_path):
    process = run_program(
        f"keras_resnet.studies.{study}", f"--output={tmp_path / 'out'}", *flags
    )
    assert_one_line(process, *words)
    assert not (tmp_path / "out").exists()


def test_the_number_of_workers_depends_on_cpus_gpus_and_the_flag(monkeypatch):
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(5), raising=False)
    assert jobs.count_workers(None) == 5
    assert (jobs.count_workers(3), jobs.count_workers(0)) == (3, 0)
    counts = [jobs.count_workers(count, sequential=True) for count in (None, 3, 0)]
    assert counts == [1, 1, 0]
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: ["one"])
    assert jobs.count_workers(None) == 1


def test_the_default_recipe_depends_on_the_dataset():
    assert Options(dataset="digits").recipe_name == "digits"
    assert Options(dataset="cifar10").recipe_name == "paper_cifar"
    assert Options(dataset="cifar10", recipe="digits").recipe_name == "digits"


def test_a_subset_is_fixed_and_has_a_fifth_as_many_test_images(digits):
    first_subset = jobs.load_subset("digits", None, 100)
    assert (len(first_subset.train), len(first_subset.test)) == (100, 20)
    second_subset = jobs.load_subset.__wrapped__("digits", None, 100)
    assert (first_subset.train.images == second_subset.train.images).all()
    images = {image.tobytes() for image in digits.train.images}
    assert all(image.tobytes() in images for image in first_subset.train.images)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_help_lists_the_flags_with_defaults(study):
    process = run_program(f"keras_resnet.studies.{study.name}", "--helpshort")
    assert "--depths" in process.stdout and "--[no]report" in process.stdout
    depths = ",".join(map(str, study.defaults.depths))
    assert f"6n+2. ({depths})" in process.stdout
    assert f"({study.defaults.epochs})" in process.stdout


def test_help_of_all_studies_lists_the_flags():
    process = run_program("keras_resnet.studies.all", "--helpshort")
    assert "6n+2. (default depends on the study)" in " ".join(process.stdout.split())
    assert "--[no]report" in process.stdout


def test_runs_are_drawn_as_a_mean_and_a_band_and_colours_repeat():
    _, (axes,) = style.new_figure("title")
    style.draw_curves(axes, None, [[1, 2, 3]], "one", style.COLOURS[0])
    assert not axes.collections
    style.draw_curves(axes, [5, 6], [[1, 2], [5, 4]], "two", style.COLOURS[1])
    style.draw_points(axes, [8, 20], [[1], [2, 4]], "points", style.COLOURS[2])
    one, two, means, *dots = axes.lines
    np.testing.assert_array_equal(one.get_xydata(), [[1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(two.get_xydata(), [[5, 3], [6, 3]])
    np.testing.assert_array_equal(means.get_xydata(), [[8, 1], [20, 3]])
    assert [dot.get_xydata().tolist() for dot in dots] == [[[8, 1]], [[20, 2], [20, 4]]]
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert corners == {(5, 1), (5, 5), (6, 2), (6, 4)}
    pairs = style.pair_with_colours(range(9))
    assert [number for number, _ in pairs] == list(range(9))
    colours = [colour for _, colour in pairs]
    assert len(set(colours[:7])) == 7 and colours[7:] == colours[:2]


def make_rows(plain_errors, residual_errors):
    """Returns rows of the study `degradation` for three seeds and two epochs.

    The arguments map each depth to the error of seed 0 in %. The errors of seeds 1 and
    2 are 0.1 and 0.2 points higher. Training and test errors are equal.
    """
    return [
        {"kind": kind, "depth": depth, "seed": seed, "epoch": epoch,
         "training_error": error + seed / 10, "test_error": error + seed / 10}
        for kind, errors in (("plain", plain_errors), ("res", residual_errors))
        for depth, error in errors.items()
        for seed in range(3)
        for epoch in (1, 2)
    ]  # fmt: skip


def test_the_degradation_figure_shows_training_and_test_errors():
    rows = make_rows({18: 27.94, 34: 28.54}, {18: 27.88, 34: 25.03})
    for row in rows:
        row["training_error"] += 10
    for axes, errors in zip(
        DEGRADATION.draw(rows).axes, ((27.94, 28.54), (27.88, 25.03)), strict=True
    ):
        for depth, error in zip((18, 34), errors, strict=True):
            training_curve, test_curve = (
                axes.lines[:2] if depth == 18 else axes.lines[2:]
            )
            # The curves are means over three seeds, for two epochs.
            assert test_curve.get_label() == f"{depth} layers"
            np.testing.assert_allclose(test_curve.get_ydata(), [error + 0.1] * 2)
            np.testing.assert_allclose(training_curve.get_ydata(), [error + 10.1] * 2)
            assert training_curve.get_linestyle() == "--"


@pytest.mark.parametrize(
    ("plain_errors", "residual_errors", "holds"),
    [
        # Top-1 errors in % on ImageNet, from Table 2 of the paper.
        ({18: 27.94, 34: 28.54}, {18: 27.88, 34: 25.03}, [True, True, True]),
        ({18: 28.54, 34: 27.94}, {18: 25.03, 34: 27.88}, [False, False, True]),
        ({18: 28.0, 34: 29.0}, {18: 28.0, 34: 28.4}, [True, True, True]),
        ({18: 28.0, 34: 29.0}, {18: 28.0, 34: 29.6}, [True, False, False]),
    ],
)
def test_degradation_verdicts_follow_from_the_final_errors(
    plain_errors, residual_errors, holds
):
    verdicts = DEGRADATION.check_expectations(make_rows(plain_errors, residual_errors))
    assert [verdict for _, verdict in verdicts] == holds


def start_study(*flags, **options):
    command = [sys.executable, "-m", "keras_resnet.studies.degradation", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, **options
    )


@pytest.mark.full
@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_study_leaves_no_process_and_resumes(stop_signal, tmp_path):
    flags = ["--depths=8,14", "--seeds=1", "--epochs=3", "--workers=2"]
    process = start_study(*flags, f"--output={tmp_path}", stderr=subprocess.PIPE)
    folder = tmp_path / "digits/degradation/jobs"
    deadline = time.monotonic() + 240
    while not list(folder.glob("*.csv")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(stop_signal)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in stderr
    num_finished = len(list(folder.glob("*.csv")))
    time.sleep(10)  # A surviving worker would finish another job by then.
    assert len(list(folder.glob("*.csv"))) == num_finished < 4
    process = start_study(*flags, f"--output={tmp_path}")
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert f"{num_finished} of 4 jobs measured before" in stdout
