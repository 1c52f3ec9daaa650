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
from keras_resnet.training import train

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
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: Unknown command line flag 'modle'")
    if module != "keras_resnet.runs":
        assert "Did you mean: model" in line


@pytest.mark.parametrize(
    "module", ["keras_resnet.train", "keras_resnet.evaluate", "export"]
)
def test_a_flag_without_dashes_is_reported(module):
    assert_one_line(run_program(module, "model=resnet20"), "Received: model=resnet20")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--image_size=32769", "range [1, 32768]"),
        ("--epochs=2147483648", "range [1, 2147483647]"),
        # Bytes of Latin-1, which run.json could not hold.
        (
            "--model_dir=caf\udce9",
            r"Flags must be in UTF-8. Received: --model_dir=caf\udce9",
        ),
    ],
)
def test_flags_that_no_run_can_have_are_refused(flag, words, tmp_path):
    result = run_program("keras_resnet.train", flag, cwd=tmp_path)
    assert_one_line(result, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        *((module, "--help") for module in (*COMMANDS, "keras_resnet.complexity")),
        ("keras_resnet.train", "--modle=resnet20"),
    ],
)
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
    """The flag only shortens the training."""
    # `run_program` is not used, because it forks a process that has already imported
    # TensorFlow. Messages of TensorFlow's import would be missing from the output.
    result = run_python("-m", "keras_resnet.train", "--epochs=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first_line = result.stdout.splitlines()[0]
    for words in ("resnet20 (shortcut A", "1,437 training", "mirrored on 1 replica(s)"):
        assert words in first_line
    assert "writing to runs/resnet20-digits" in first_line
    assert "epoch 1/1 - loss" in result.stdout
    assert result.stderr == ""
    assert (tmp_path / "runs/resnet20-digits/final.keras").exists()
    second_result = run_program("keras_resnet.train", "--epochs=1", cwd=tmp_path)
    assert "has ended; nothing to do" in second_result.stdout


@pytest.mark.slow
def test_train_works_on_two_replicas(tmp_path):
    flags = ("--strategy=mirrored", "--virtual_devices=2", "--epochs=1")
    result = run_program(
        "keras_resnet.train", "--model=cifar_resnet8", *flags, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "mirrored on 2 replica(s)" in result.stdout.splitlines()[0]
    assert (tmp_path / RUN_FOLDER / "final.keras").exists()


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
    os.mkfifo(image_files / "pipe.png")  # Opening it would wait forever.
    (image_files / "a\x1b[31m.png").write_bytes(b"")
    files = ("three.png", "half.jpg", "missing.png", "three.jpg", "pipe.png")
    files += ("a\x1b[31m.png",)
    result = run_program(
        "keras_resnet.predict", f"--model={trained_run}", *files, cwd=image_files
    )
    assert result.returncode == 1
    assert re.search("^error: half.jpg: .*damaged", result.stderr, re.MULTILINE)
    assert "error: missing.png: No such file" in result.stderr
    assert "error: pipe.png: A regular file " in result.stderr
    assert r"error: a\x1b[31m.png: The file is damaged" in result.stderr
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


def read_rows(path):
    """Returns the rows of a CSV file as dicts."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def predicted_digits(trained_run):
    """The test split of digits, and the probabilities that Keras predicts for it."""
    split = sources.load_dataset("digits").test
    model = keras.models.load_model(trained_run / "final.keras")
    probabilities = np.float64(model.predict(split.images, verbose=0))
    return split, probabilities / probabilities.sum(axis=1, keepdims=True)


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


def test_results_equal_those_of_scikit_learn(trained_run, predicted_digits, tmp_path):
    """The command evaluates batches of 14 images on two replicas."""
    split, probabilities = predicted_digits
    predicted_classes, output = probabilities.argmax(axis=1), tmp_path / "report"
    result = run_program(
        "keras_resnet.evaluate", f"--model={trained_run}", "--virtual_devices=2",
        "--batch_size=14", "--output=report", "--predictions=images.csv", cwd=tmp_path,
    )  # fmt: skip
    assert re.fullmatch(r"report .*: report\n", result.stderr)
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
        "loss": metrics.log_loss(split.labels, probabilities),
    }
    for name, value in expected.items():
        assert record[name] == pytest.approx(value, rel=1e-4)
    num_correct = np.sum(predicted_classes == split.labels)
    assert result.stdout == (
        f"{num_correct} of 360 test images correct: "
        f"top-1 {expected['accuracy']:.2%}, top-5 {expected['top5_accuracy']:.2%}, "
        f"loss {record['loss']:.4f}\n"
    )
    assert (output / "confusion.png").read_bytes().startswith(b"\x89PNG")

    confusion = metrics.confusion_matrix(split.labels, predicted_classes)
    rows = read_rows(output / "per_class.csv")
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

    rows = read_rows(tmp_path / "images.csv")
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


def test_evaluate_accepts_all_images(run_copy):
    results = evaluate(run_copy, split="all", strategy="one_device")
    assert results["output"] == os.path.join(run_copy, "evaluation")
    record = read_evaluation(results["output"])
    assert (record["images"], record["split"]) == (1797, "all")
    for name in ("images", "accuracy", "top5_accuracy", "loss"):
        assert results[name] == record[name]


def test_evaluate_recalibrates_statistics(run_copy, image_files, monkeypatch):
    """One batch contains all training images, so the statistics are exact.

    The working directory is the run folder. The test split contains a fifth of the
    1,797 digits, rounded up, so there are 1,437 training images.
    """
    monkeypatch.chdir(run_copy)
    evaluate(
        "final.keras", split="train", recalibrate_bn=True, batch_size=1437,
        strategy="one_device",
    )  # fmt: skip
    old_model, new_model = (
        keras.models.load_model(f"{name}.keras") for name in ("final", "recalibrated")
    )
    images = sources.load_dataset("digits").train.images
    stem = keras.Model(old_model.input, old_model.get_layer("conv1_conv").output)
    outputs = stem.predict(images, verbose=0).astype(np.float64)
    _, _, mean, variance = new_model.get_layer("conv1_bn").get_weights()
    np.testing.assert_allclose(mean, outputs.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(variance, outputs.var((0, 1, 2)), rtol=1e-3)
    for new_variable, old_variable in zip(
        new_model.trainable_variables, old_model.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(new_variable.numpy(), old_variable.numpy())
    record = read_evaluation("evaluation")
    assert record["recalibrated"] is True
    assert (record["images"], record["split"]) == (1437, "train")
    path = str(image_files / "three.png")
    ((name, _),) = predict([path], "recalibrated.keras", top=1)[path]
    assert name == "3"


@pytest.fixture
def digits_folder(predicted_digits, tmp_path):
    """Undivided folder with the test images of the digits 3 and 7, as PNG files."""
    split, _ = predicted_digits
    for i in np.flatnonzero(np.isin(split.labels, (3, 7))):
        folder = tmp_path / "digits" / str(split.labels[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(split.images[i, ..., 0]).save(folder / f"{i:03}.png")
    return tmp_path / "digits"


def change_dataset(run_folder, dataset):
    """Changes `run.json` as if the run had been trained on another dataset."""
    path = pathlib.Path(run_folder, "run.json")
    record = json.loads(path.read_text("utf-8"))
    record["settings"]["dataset"] = dataset
    path.write_text(json.dumps(record), "utf-8")


def test_evaluate_accepts_a_subset_of_classes(
    run_copy, predicted_digits, digits_folder, tmp_path
):
    """All images are evaluated, because the network was not trained on the folder."""
    split, probabilities = predicted_digits
    path = tmp_path / "images.csv"
    results = evaluate(
        run_copy, dataset=f"folder:{digits_folder}", predictions=path,
        strategy="one_device",
    )  # fmt: skip
    indices = np.flatnonzero(np.isin(split.labels, (3, 7)))
    assert results["images"] == len(indices)
    is_correct = probabilities[indices].argmax(axis=1) == split.labels[indices]
    assert results["accuracy"] == pytest.approx(is_correct.mean())
    assert read_evaluation(f"{run_copy}/evaluation")["split"] == "whole"
    rows = read_rows(path)
    assert sorted(int(os.path.basename(row["image"])[:3]) for row in rows) == [*indices]


@pytest.mark.parametrize("dataset", [None, "folder:digits"])
def test_evaluate_leaves_training_images_out(
    dataset, run_copy, digits_folder, monkeypatch
):
    """Every fifth image of each class in an undivided folder is a test image."""
    change_dataset(run_copy, f"folder:{digits_folder}")
    monkeypatch.chdir(digits_folder.parent)
    evaluate(run_copy, dataset=dataset, predictions="a.csv", strategy="one_device")
    expected = [
        str(path)
        for digit in "37"
        for path in sorted((digits_folder / digit).iterdir())[4::5]
    ]
    assert [row["image"] for row in read_rows("a.csv")] == expected
    assert read_evaluation(f"{run_copy}/evaluation")["split"] == "test"


def test_evaluate_uses_the_test_split_of_another_dataset(run_copy):
    """Only an undivided folder, which has no test split, is evaluated as a whole."""
    change_dataset(run_copy, "folder:/elsewhere")
    results = evaluate(run_copy, dataset="digits", strategy="one_device")
    assert results["images"] == 360
    assert read_evaluation(f"{run_copy}/evaluation")["split"] == "test"


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
        ({"output": "run.json"}, "must be writable. Received: 'run.json'"),
        ({"predictions": "run.json/a.csv"}, "must be writable. Received: 'run.json'"),
    ],
)
def test_evaluate_refuses_invalid_arguments(arguments, words, run_copy, monkeypatch):
    monkeypatch.chdir(run_copy)
    with pytest.raises(InputError) as error:
        evaluate(run_copy, **{"strategy": "one_device", **arguments})
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not os.path.exists("evaluation")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["keras_resnet.predict"], "at least one image"),
        (["keras_resnet.evaluate", "--model=runs/a"], "there is no runs/a/run.json"),
        (["keras_resnet.train", "--model=resnet20x"], "Did you mean 'resnet20'?"),
        (
            ["keras_resnet.train", "--model=cifar_resnet8", "--model_dir=/proc/run"],
            "writable",
        ),
        (["keras_resnet.train", "--epochs=2", "--set", "epochs=3"], "--set epochs can"),
        (["keras_resnet.train", "--set", "ema=1"], "below 1. Received: ema=1"),
        (["keras_resnet.train", "--local_workers=2"], "needs --strategy=multi_worker"),
        (
            ["keras_resnet.train", "--local_workers=2", "--strategy=multi_worker"],
            "local_workers needs --model_dir",
        ),
        (["export", "--formats=onnxx"], "Unknown format"),
    ],
)
def test_errors_are_one_line(arguments, words, tmp_path):
    result = run_program(*arguments, cwd=tmp_path)
    assert_one_line(result, words)
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"jit_compile": True, "virtual_devices": 2}, "jit_compile requires one rep"),
        ({"virtual_devices": 2, "batch_size": 63}, "must be a multiple of 2: "),
        ({"model": "resnet50", "image_size": 4}, "sides of 32 to 32768 pixels"),
        # The last feature map is a quarter as high as the image, hence the 4 pixels.
        ({"image_size": 3}, "sides of 4 to 32768 pixels"),
        ({"sizes": "8,3"}, "sizes must be at least 4 pixels"),
        ({"strategy": "miror"}, "Did you mean 'mirrored'?"),
        ({"strategy": "tpu"}, "TPU"),
        ({"strategy": "multi_worker"}, "Received: none of TF_CONFIG"),
        (
            {"strategy": "multi_worker", "virtual_devices": 2},
            "virtual_devices requires",
        ),
        ({"model_dir": "file"}, "model_dir must be"),
        ({"model_dir": "file/below"}, "model_dir must be"),
        ({"model_dir": "/proc/run"}, "model_dir must be a writable folder"),
        ({"weights": "imagenet"}, "weights"),
    ],
)
def test_train_refuses_invalid_options(options, words, tmp_path, monkeypatch):
    """The error is one line, and no file is written or changed."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").write_text("not a folder")
    with pytest.raises(InputError) as error:
        train(**{"model": "cifar_resnet8", **options}, verbose=0)
    assert words in str(error.value)
    assert "Received: " in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir() == ["file"]
    assert pathlib.Path("file").read_text() == "not a folder"


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


RUN_FOLDER = "runs/cifar_resnet8-digits"
SHORT_RUN_FLAGS = (
    "--model=cifar_resnet8", "--strategy=one_device", "--epochs=2",
    "--batch_size=240",
)  # fmt: skip


@pytest.mark.slow
def test_a_terminal_shows_a_progress_bar_unless_the_run_is_silent(tmp_path):
    """A run on a terminal is killed in its second epoch, and resumed silently."""
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
    flags = (*SHORT_RUN_FLAGS, "--set", "checkpoint_every=2")
    child = Child(
        "keras_resnet.train", *flags, cwd=tmp_path, terminal=os.ttyname(writing_end),
        faults=[
            ("call_after_step", "each", "_sleep", 0.2), ("call_after_step", 9, "_die")
        ],
    )  # fmt: skip
    assert child.wait().returncode == -9
    os.close(writing_end)
    reader_thread.join()
    os.close(reading_end)
    output = re.sub(r"\x1b\[[0-9;]*m", "", b"".join(chunks).decode())
    assert "Epoch 1/2" in output and "Epoch 2/2" in output
    # The remaining time and the time per step are displayed after the bar.
    # Example of a match: "2/6 ... 1s 300ms/step - accuracy: 0.1 - loss: 2.3".
    regex = r"[1-5]/6 \S+ \d+[ms:\d]* \d+m?s/step - accuracy: [\d.]+ - loss: [\d.]+"
    assert re.search(regex, output), output
    assert re.search(r"6/6 \S+ .*val_accuracy: [\d.]+ - val_loss: ", output), output
    assert "\b" in output or "\r" in output

    for is_complete in (False, True):
        assert (tmp_path / RUN_FOLDER / "final.keras").exists() == is_complete
        result = run_child("keras_resnet.train", *flags, "--verbosity=-1", cwd=tmp_path)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    result = run_child(
        "keras_resnet.train", *flags, "--verbosity=-1", "--seed=1", cwd=tmp_path
    )
    assert_one_line(result, "seed (began with 0, now 1)")
    assert result.stdout == ""


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
    rows = read_rows(tmp_path / "run" / "metrics.csv")
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
