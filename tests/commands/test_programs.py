"""The commands, run in subprocesses with valid and with invalid input."""

import csv
import json
import os
import pathlib
import pty
import re
import shutil
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from children import Child, run_child
from conftest import assert_one_line, run_program, run_python
from PIL import Image, ImageOps
from sklearn import metrics

from keras_resnet.data import sources
from keras_resnet.evaluate import evaluate
from keras_resnet.predict import predict
from keras_resnet.support.errors import InputError

COMMANDS = (
    "keras_resnet.train",
    "keras_resnet.evaluate",
    "keras_resnet.predict",
    "keras_resnet.convert",
    "keras_resnet.runs",
    "export",
)


@pytest.mark.parametrize("module", COMMANDS)
def test_help_fits_a_screen(module):
    result = run_program(module, "--helpshort")
    lines = result.stdout.splitlines()
    # Lines with the path of a module may be longer than 80 characters.
    lines = [line for line in lines if not line.endswith(".py:")]
    assert len(lines) <= 44
    assert max(map(len, lines)) <= 80
    flags = re.findall(r"^  --(?:\[no\])?(\w+):", result.stdout, re.MULTILINE)
    assert 1 <= len(flags) <= 20
    if module != "keras_resnet.convert":  # `convert` has no flag with a default.
        assert "(default:" in result.stdout


@pytest.mark.parametrize("module", COMMANDS)
def test_an_unknown_flag_is_reported(module):
    result = run_program(module, "--modle=resnet20")
    assert result.returncode == 1
    assert "Unknown command line flag 'modle'" in result.stderr
    if module != "keras_resnet.runs":
        assert "Did you mean: model" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "module", ["keras_resnet.train", "keras_resnet.evaluate", "export"]
)
def test_a_flag_without_dashes_is_reported(module):
    assert_one_line(run_program(module, "model=resnet20"), "Received: model=resnet20")


@pytest.mark.parametrize("module", [*COMMANDS, "keras_resnet.complexity"])
@pytest.mark.parametrize("flag", ["--help", "--modle=resnet20"])
def test_help_and_flags_do_not_wait_for_tensorflow(module, flag):
    """A command reads its flags before it imports TensorFlow, Keras or NumPy."""
    code = f"""
import runpy, sys
sys.argv = ["program", {flag!r}]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit:
    print("imported:", *sys.modules)
"""
    result = run_python("-c", code)
    modules = result.stdout.splitlines()[-1].split()
    assert modules[0] == "imported:" and "absl.flags" in modules
    assert not {"keras", "tensorflow", "numpy", "keras_resnet.training"} & {*modules}


def test_train_works_with_default_settings(tmp_path):
    """The flags only shorten the training and add a second replica."""
    flags = ("--strategy=mirrored", "--virtual_devices=2", "--epochs=1")
    # `run_program` is not used, because it forks a process that has already imported
    # TensorFlow. Messages of TensorFlow's import would be missing from the output.
    result = run_python("-m", "keras_resnet.train", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first_line = result.stdout.splitlines()[0]
    for words in ("resnet20 (shortcut A", "1,437 training", "mirrored on 2 replica(s)"):
        assert words in first_line
    assert "writing to runs/resnet20-digits" in first_line
    assert "epoch 1/1 - loss" in result.stdout
    assert result.stderr == ""
    assert (tmp_path / "runs/resnet20-digits/final.keras").exists()
    second_result = run_program("keras_resnet.train", *flags, cwd=tmp_path)
    assert "has ended; nothing to do" in second_result.stdout


def test_evaluate_prints_the_same_on_one_and_on_two_devices(trained_run, tmp_path):
    output_flag = "--output=report"  # Files in the default folder affect other tests.
    one_device_result = run_program(
        "keras_resnet.evaluate", f"--model={trained_run}", output_flag, cwd=tmp_path
    )
    assert re.match(
        r"\d+ of 360 test images correct: top-1 9\d\.\d\d%", one_device_result.stdout
    )
    assert re.fullmatch(r"report .*: report\n", one_device_result.stderr)
    two_devices_result = run_program(
        "keras_resnet.evaluate",
        f"--model={trained_run}",
        "--virtual_devices=2",
        "--batch_size=14",
        output_flag,
        cwd=tmp_path,
    )
    assert two_devices_result.stdout == one_device_result.stdout


@pytest.fixture
def image_files(tmp_path):
    """Folder with an enlarged digit 3 in two formats, and a damaged image file."""
    from sklearn.datasets import load_digits

    digit = np.kron(load_digits().images[3], np.ones((4, 4)))[..., None] * 15.9375
    keras.utils.save_img(tmp_path / "three.png", digit, scale=False)
    keras.utils.save_img(tmp_path / "three.jpg", digit.repeat(3, -1), scale=False)
    (tmp_path / "half.jpg").write_bytes((tmp_path / "three.jpg").read_bytes()[:200])
    return tmp_path


def test_predict_reports_unreadable_files_and_continues(trained_run, image_files):
    files = ("three.png", "half.jpg", "missing.png", "three.jpg")
    result = run_program(
        "keras_resnet.predict", f"--model={trained_run}", *files, cwd=image_files
    )
    assert result.returncode == 1
    assert re.search("^error: half.jpg: .*damaged", result.stderr, re.MULTILINE)
    assert "error: missing.png: No such file" in result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2 * 6
    for start, name in ((0, "three.png"), (6, "three.jpg")):
        assert lines[start] == name
        assert lines[start + 1].split()[1] == "3"
        scores = [float(line.split("%")[0]) for line in lines[start + 1 : start + 6]]
        assert scores == sorted(scores, reverse=True)


def test_predict_returns_the_class_of_a_file(trained_run, image_files):
    path = str(image_files / "three.png")
    ((name, probability),) = predict([path], str(trained_run), top=1)[path]
    assert name == "3"
    assert 0 < probability <= 1


def test_predict_prints_json(trained_run, image_files):
    """Standard output contains only JSON. Damaged files also have a record."""
    files = ("three.png", "half.jpg", "missing.png", "three.jpg")
    result = run_program(
        "keras_resnet.predict", f"--model={trained_run}", "--json", "--top=3", *files,
        cwd=image_files,
    )  # fmt: skip
    assert result.returncode == 1
    records = json.loads(result.stdout)
    assert [record["image"] for record in records] == list(files)
    assert [len(record.get("classes", ())) for record in records] == [3, 0, 0, 3]
    assert records[0]["classes"][0]["class"] == "3"
    assert 0 < records[0]["classes"][0]["probability"] <= 1
    assert "damaged" in records[1]["error"]
    assert "No such file" in records[2]["error"]
    assert re.search("^error: half.jpg: .*damaged", result.stderr, re.MULTILINE)


@pytest.fixture(scope="module")
def predicted_digits(trained_run):
    """The test split of digits, and the probabilities that Keras predicts for it."""
    split = sources.load_dataset("digits").test
    model = keras.models.load_model(trained_run / "final.keras")
    return split, model.predict(split.images, verbose=0)


def test_predict_reads_all_files_below_a_folder(
    trained_run, predicted_digits, tmp_path
):
    """The files fill several batches. The predictions are sorted by path."""
    split, probabilities = predicted_digits
    for i in range(40):
        folder = tmp_path / "all" / ("below/further" if i % 3 else "")
        folder.mkdir(parents=True, exist_ok=True)
        suffix = ("png", "PNG", "bmp")[i % 3]
        Image.fromarray(split.images[i, ..., 0]).save(folder / f"{40 - i:02}.{suffix}")
    (tmp_path / "all" / "notes.txt").write_text("none")
    shutil.copy(tmp_path / "all" / "40.png", tmp_path / "40.png")
    calls = []
    paths = [str(tmp_path / name) for name in ("40.png", "all")]
    predictions = predict(
        paths, str(trained_run), top=10, on_image=lambda: calls.append(1)
    )
    predicted_paths = list(predictions)
    assert len(predicted_paths) == len(calls) == 41
    assert predicted_paths[0] == paths[0]
    assert predicted_paths[1:] == sorted(predicted_paths[1:])
    for path, prediction in predictions.items():
        index = 40 - int(os.path.basename(path)[:2])
        expected = {str(k): p for k, p in enumerate(probabilities[index])}
        assert dict(prediction) == pytest.approx(expected, abs=1e-5)


def test_predict_reads_all_file_formats(trained_run, image_files):
    image = Image.open(image_files / "three.png")
    assert image.mode == "L"
    formats_by_name = {
        "rgb.png": ("RGB", {}),
        "transparent.png": ("RGBA", {}),
        "palette.png": ("P", {}),
        "grey.bmp": ("L", {}),
        "rgb.bmp": ("RGB", {}),
        "rgb.webp": ("RGB", {"lossless": True}),
        "palette.gif": ("P", {}),
        "grey.jpg": ("L", {"quality": 95}),
        "cmyk.jpg": ("CMYK", {"quality": 95}),
        "progressive.jpeg": ("RGB", {"quality": 95, "progressive": True}),
    }
    paths = [str(image_files / name) for name in ("three.png", *formats_by_name)]
    for path, (mode, options) in zip(paths[1:], formats_by_name.values(), strict=True):
        source_image = image if mode == "L" else image.convert("RGB")
        source_image.convert(mode).save(path, **options)
    predictions = predict(paths, str(trained_run), top=10)
    expected = dict(predictions[paths[0]])
    assert max(expected, key=expected.get) == "3"
    for path in paths:
        assert dict(predictions[path]) == pytest.approx(expected, abs=0.02), path


def test_predict_applies_the_exif_orientation(trained_run, image_files):
    image = Image.open(image_files / "three.png")
    Transpose = Image.Transpose
    method_by_orientation = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_90,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_270,
    }
    paths = {k: str(image_files / f"rotated{k}.jpg") for k in method_by_orientation}
    for orientation, method in method_by_orientation.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        rotated_image = image.transpose(method)
        rotated_image.save(paths[orientation], quality=95, exif=exif)
        restored_image = ImageOps.exif_transpose(Image.open(paths[orientation]))
        assert np.abs(np.asarray(restored_image, int) - np.asarray(image)).max() < 40
    upright_path = str(image_files / "three.png")
    predictions = predict([upright_path, *paths.values()], str(trained_run), top=10)
    expected = dict(predictions[upright_path])
    for path in paths.values():
        assert dict(predictions[path]) == pytest.approx(expected, abs=0.02), path


@pytest.mark.parametrize("file_names", [(), ("notes.txt",)])
def test_predict_reports_a_folder_without_images_and_continues(
    file_names, trained_run, tmp_path
):
    folder, image = tmp_path / "empty", str(tmp_path / "image.png")
    folder.mkdir()
    for name in file_names:
        (folder / name).write_text("none")
    keras.utils.save_img(image, np.full((8, 8, 1), 90))
    predictions = predict([str(folder), image], str(trained_run))
    assert list(predictions) == [str(folder), image]
    assert "folder contains no images (.jpg .jpeg" in predictions[str(folder)]
    assert len(predictions[image]) == 5


def test_a_report_equals_scikit_learn(trained_run, predicted_digits, tmp_path):
    split, probabilities = predicted_digits
    predicted_classes, output = probabilities.argmax(axis=1), tmp_path / "report"
    csv_path = tmp_path / "images.csv"
    results = evaluate(str(trained_run), output=str(output), predictions=str(csv_path))
    assert results["output"] == str(output)
    assert {p.name for p in output.iterdir()} == {
        "evaluation.json",
        "per_class.csv",
        "confusion.png",
    }
    record = json.loads((output / "evaluation.json").read_text("utf-8"))
    assert (record["images"], record["dataset"], record["split"]) == (
        360,
        "digits",
        "test",
    )
    assert (record["views"], record["recalibrated"]) == ("single", False)
    expected = {
        "accuracy": metrics.accuracy_score(split.labels, predicted_classes),
        "top5_accuracy": metrics.top_k_accuracy_score(split.labels, probabilities, k=5),
        "loss": metrics.log_loss(split.labels, probabilities.astype(np.float64)),
    }
    for name, value in expected.items():
        assert record[name] == pytest.approx(value, rel=1e-4)
        assert results[name] == record[name]
    assert (output / "confusion.png").read_bytes().startswith(b"\x89PNG")

    confusion = metrics.confusion_matrix(split.labels, predicted_classes)
    rows = list(csv.DictReader((output / "per_class.csv").open()))
    assert len(rows) == 10
    for row in rows:
        counts = confusion[int(row["class"])]
        num_correct = counts[int(row["class"])]
        assert (int(row["images"]), int(row["right"])) == (counts.sum(), num_correct)
        assert float(row["accuracy"]) == pytest.approx(
            num_correct / counts.sum(), abs=1e-6
        )
        num_errors = counts[int(row["taken_for"])] if row["taken_for"] else 0
        assert (
            num_errors
            == int(row["times"])
            == np.delete(counts, int(row["class"])).max()
        )
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies)

    rows = list(csv.DictReader(csv_path.open()))
    assert [int(row["image"]) for row in rows] == list(range(360))
    assert [int(row["label"]) for row in rows] == split.labels.tolist()
    assert [int(row["class_1"]) for row in rows] == predicted_classes.tolist()
    assert sum(int(row["right"]) for row in rows) == confusion.trace()
    scores = probabilities.max(axis=1)
    np.testing.assert_allclose([float(r["score_1"]) for r in rows], scores, 1e-4)


@pytest.fixture
def run_copy(trained_run, tmp_path):
    """Path of a copy of the run folder that a test may change."""
    return str(shutil.copytree(trained_run, tmp_path / "run"))


def read_evaluation(folder):
    with open(os.path.join(folder, "evaluation.json"), encoding="utf-8") as file:
        return json.load(file)


# The test split contains 360 of the 1,797 digits: a fifth, rounded up.
@pytest.mark.parametrize(("split", "num_images"), [("train", 1437), ("all", 1797)])
def test_evaluate_accepts_other_splits(split, num_images, run_copy):
    evaluate(run_copy, split=split, strategy="one_device")
    record = read_evaluation(os.path.join(run_copy, "evaluation"))
    assert (record["images"], record["split"]) == (num_images, split)


def test_evaluate_recalibrates_statistics(run_copy, image_files):
    """One batch contains all training images, so the statistics are exact."""
    old_model = keras.models.load_model(f"{run_copy}/final.keras")
    evaluate(run_copy, recalibrate_bn=True, batch_size=1437, strategy="one_device")
    new_model = keras.models.load_model(f"{run_copy}/recalibrated.keras")
    images = sources.load_dataset("digits").train.images
    stem = keras.Model(old_model.input, old_model.get_layer("conv1_conv").output)
    outputs = stem.predict(images, verbose=0).astype(np.float64)
    layer = new_model.get_layer("conv1_bn")
    np.testing.assert_allclose(layer.moving_mean, outputs.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, outputs.var((0, 1, 2)), rtol=1e-3)
    for new_variable, old_variable in zip(
        new_model.trainable_variables, old_model.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(new_variable, old_variable)
    assert read_evaluation(os.path.join(run_copy, "evaluation"))["recalibrated"] is True
    path = str(image_files / "three.png")
    ((name, _),) = predict([path], f"{run_copy}/recalibrated.keras", top=1)[path]
    assert name == "3"


def test_evaluate_works_inside_the_run_folder(run_copy, monkeypatch):
    monkeypatch.chdir(run_copy)
    evaluate("final.keras", recalibrate_bn=True, strategy="one_device")
    assert os.path.exists("recalibrated.keras")
    assert os.path.exists("evaluation/evaluation.json")


def test_evaluate_accepts_a_subset_of_classes(run_copy, predicted_digits, tmp_path):
    """All images are evaluated, because the network was not trained on the folder."""
    split, probabilities = predicted_digits
    indices = np.flatnonzero(np.isin(split.labels, (3, 7)))
    for i in indices:
        folder = tmp_path / "digits" / str(split.labels[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(split.images[i, ..., 0]).save(folder / f"{i:03}.png")
    dataset, path = f"folder:{tmp_path}/digits", tmp_path / "images.csv"
    results = evaluate(
        run_copy, dataset=dataset, predictions=path, strategy="one_device"
    )
    assert results["images"] == len(indices)
    is_correct = probabilities[indices].argmax(axis=1) == split.labels[indices]
    assert results["accuracy"] == pytest.approx(is_correct.mean())
    assert read_evaluation(f"{run_copy}/evaluation")["split"] == "whole"
    rows = list(csv.DictReader(path.open()))
    assert sorted(int(os.path.basename(row["image"])[:3]) for row in rows) == [*indices]


def test_evaluate_records_the_split_of_another_dataset(run_copy):
    """`evaluation.json` states whether the test split or all digits were evaluated."""
    path = os.path.join(run_copy, "run.json")
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    record["settings"]["dataset"] = "folder:/elsewhere"
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file)
    results = evaluate(run_copy, dataset="digits", strategy="one_device")
    split = read_evaluation(os.path.join(run_copy, "evaluation"))["split"]
    assert (results["images"], split) in ((360, "test"), (1797, "whole"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"views": "12crop"}, "Did you mean '10crop'?"),
        ({"views": "10crop"}, "the whole image. Received: views='10crop'"),
        ({"views": "multiscale"}, "need an ImageNet network"),
        ({"split": "val"}, "Accepted: test, train, all. Received: split='val'"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"strategy": "tpu"}, "Accepted: one_device, mirrored"),
        ({"dataset": "folder:/nowhere"}, "The folder does not exist"),
        ({"weights": "imagenet"}, "weights and image_size are accepted only with"),
    ],
)
def test_evaluate_refuses_invalid_arguments(arguments, words, run_copy):
    with pytest.raises(InputError) as error:
        evaluate(run_copy, **{"strategy": "one_device", **arguments})
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not os.path.exists(f"{run_copy}/evaluation")


def test_a_report_that_cannot_be_written_is_an_error(trained_run, tmp_path):
    (tmp_path / "report").write_text("a file")
    result = run_program(
        "keras_resnet.evaluate",
        f"--model={trained_run}",
        "--output=report",
        cwd=tmp_path,
    )
    assert_one_line(result, "report")
    assert result.stdout == ""
    assert (tmp_path / "report").read_text() == "a file"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["keras_resnet.predict"], "at least one image"),
        (["keras_resnet.evaluate", "--model=runs/a"], "there is no runs/a/run.json"),
        (["keras_resnet.train", "--model=resnet20x"], "Did you mean 'resnet20'?"),
        (["keras_resnet.train", "--model_dir=/proc/run"], "writable"),
        (["export", "--formats=onnxx"], "Unknown format"),
    ],
)
def test_errors_are_one_line(arguments, words, tmp_path):
    assert_one_line(run_program(*arguments, cwd=tmp_path), words)


def test_evaluate_refuses_unknown_classes(trained_run, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(5):
            keras.utils.save_img(
                tmp_path / name / f"{i}.png", np.full((8, 8, 3), 40 * i)
            )
    result = run_program(
        "keras_resnet.evaluate",
        f"--model={trained_run}",
        f"--dataset=folder:{tmp_path}",
    )
    assert_one_line(result, "classes of the network are 0, 1", "cat, dog")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--set", "label_smoothing"],
            "--set requires field=value. Received: --set label",
        ),
        (["--set", "label_smothing=0.1"], "Did you mean 'label_smoothing'?"),
        (["--set", "ema=high"], "ema must be a number. Received: ema='high'"),
        (["--set", "ema=1"], "ema must be below 1. Received: ema=1"),
        (["--set", "keep_checkpoints=0"], "keep_checkpoints must be above 0"),
        (["--set", "sync_bn=2"], "sync_bn must be True or False"),
        (["--set", "ema=0.5", "--set", "ema=0.9"], "ema is set twice"),
        (["--epochs=2", "--set", "epochs=3"], "--epochs and --set epochs"),
        (["--epochs=2", "--set", "iterations=100"], "epochs=2, iterations=100"),
        (["--local_workers=2"], "local_workers needs --strategy=multi_worker"),
        (
            ["--local_workers=2", "--strategy=multi_worker"],
            "local_workers needs --model_dir",
        ),
        (
            ["--set", "jit_compile=True", "--virtual_devices=2"],
            "jit_compile requires one replica",
        ),
        (
            ["--virtual_devices=2", "--batch_size=63"],
            "The batch size must be a multiple of 2: ",
        ),
        (["--model=resnet50", "--image_size=4"], "sides of at least 32 pixels"),
        # The last feature map is a quarter as high as the image, hence the 4 pixels.
        (["--image_size=3"], "sides of at least 4 pixels"),
        (["--set", "sizes=8,3"], "sizes must be at least 4 pixels"),
        (["--strategy=miror"], "Did you mean 'mirrored'?"),
        (["--strategy=tpu"], "TPU"),
        (["--strategy=multi_worker"], "Received: none of TF_CONFIG"),
        (
            ["--strategy=multi_worker", "--virtual_devices=2"],
            "virtual_devices requires",
        ),
        (["--model_dir=file"], "model_dir must be"),
        (["--model_dir=file/below"], "model_dir must be"),
        (["--model_dir=/proc/run"], "model_dir must be a writable folder"),
        (["--freeze=conv7"], "Unknown stage"),
        (["--weights=imagenet"], "weights"),
    ],
)
def test_train_refuses_invalid_input(flags, words, tmp_path):
    """The error is one line, and no file is written or changed."""
    (tmp_path / "file").write_text("not a folder")
    result = run_child("keras_resnet.train", *flags, cwd=tmp_path)
    assert_one_line(result, words)
    assert [line for line in result.stderr.splitlines() if line] == [
        line for line in result.stderr.splitlines() if line.startswith("error: ")
    ]
    assert result.stderr.count("Received: ") >= words.count("Received: ")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "not a folder"


def test_train_reports_missing_write_permission(tmp_path):
    """Root may write anywhere. If root runs the test, `train` runs as user nobody."""
    uid_map = pathlib.Path("/proc/self/uid_map")
    if uid_map.exists() and uid_map.read_text().split()[2] == "1":
        pytest.skip("this sandbox has no other user")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    faults = [("become_nobody",)] if os.getuid() == 0 else []
    if not faults:
        tmp_path.chmod(0o555)
    result = run_child("keras_resnet.train", cwd=tmp_path, faults=faults)
    assert_one_line(result, "writable", "Permission denied")
    assert os.listdir(tmp_path) == []


SHORT_RUN_FLAGS = (
    "--model=cifar_resnet8", "--strategy=one_device", "--epochs=2",
    "--batch_size=240",
)  # fmt: skip


def test_a_silent_run_prints_only_errors(tmp_path):
    """With --verbosity=-1, new, resumed and complete runs print no progress."""
    flags = (*SHORT_RUN_FLAGS, "--verbosity=-1", "--set", "checkpoint_every=2")
    for faults, status in (([("call_after_step", 5, "_die")], -9), ([], 0), ([], 0)):
        result = run_child("keras_resnet.train", *flags, cwd=tmp_path, faults=faults)
        assert (result.returncode, result.stdout, result.stderr) == (status, "", "")
    result = run_child("keras_resnet.train", *flags, "--seed=1", cwd=tmp_path)
    assert_one_line(result, "seed (began with 0, now 1)")
    assert result.stdout == ""


def test_a_terminal_shows_a_progress_bar(tmp_path):
    """The remaining time and the time per step are displayed after the bar."""
    reading_end, writing_end = pty.openpty()
    chunks = []

    def read_terminal():
        try:
            while content := os.read(reading_end, 4096):
                chunks.append(content)
        except OSError:  # The writing end is closed.
            pass

    reader_thread = threading.Thread(target=read_terminal)
    reader_thread.start()
    child = Child(
        "keras_resnet.train", *SHORT_RUN_FLAGS, cwd=tmp_path,
        terminal=os.ttyname(writing_end),
        faults=[("call_after_step", "each", "_sleep", 0.2)],
    )  # fmt: skip
    assert child.wait().returncode == 0
    os.close(writing_end)
    reader_thread.join()
    os.close(reading_end)
    output = re.sub(r"\x1b\[[0-9;]*m", "", b"".join(chunks).decode())
    assert "Epoch 1/2" in output and "Epoch 2/2" in output
    # Example of a match: "2/6 ... 1s 300ms/step - accuracy: 0.1 - loss: 2.3".
    regex = r"[1-5]/6 \S+ \d+[ms:\d]* \d+m?s/step - accuracy: [\d.]+ - loss: [\d.]+"
    assert re.search(regex, output), output
    assert re.search(r"6/6 \S+ .*val_accuracy: [\d.]+ - val_loss: ", output), output
    assert "\b" in output or "\r" in output


def test_a_missing_tensorboard_is_reported(tmp_path):
    flags = ("--set", "tensorboard=True")
    faults = [("hide_package", "tensorboard")]
    result = run_child("keras_resnet.train", *flags, cwd=tmp_path, faults=faults)
    assert_one_line(result, "pip install 'keras-resnet-zoo[tensorboard]'")
    assert result.stdout == ""
    assert os.listdir(tmp_path) == []


def test_tensorboard_logs_equal_the_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    flags = ("--set", "tensorboard=True", "--model_dir=run")
    result = run_child("keras_resnet.train", *SHORT_RUN_FLAGS, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    events = {}
    for path in (tmp_path / "run" / "tensorboard").rglob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            if event.graph_def:
                events["graph"] = event.graph_def
            for value in event.summary.value:
                events.setdefault(f"{path.parent.name}/{value.tag}", []).append(value)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    for tag, column in (
        ("train/epoch_loss", "loss"),
        ("train/epoch_accuracy", "accuracy"),
        ("train/epoch_learning_rate", "learning_rate"),
        ("validation/epoch_loss", "val_loss"),
        ("validation/epoch_accuracy", "val_accuracy"),
    ):
        values = [float(tf.make_ndarray(value.tensor)) for value in events[tag]]
        assert values == pytest.approx([float(row[column]) for row in rows], rel=1e-5)
    assert any("graph" in tag or "keras" in tag for tag in events)
    ((images,),) = (v for tag, v in events.items() if tag.endswith("/augmented"))
    width, height, png, *_ = tf.make_ndarray(images.tensor)
    assert (int(width), int(height)) == (8, 8)
    assert tf.io.decode_png(png).shape == (8, 8, 1)
