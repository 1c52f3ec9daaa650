"""The programs as a user starts them, with right and with wrong input."""

import ast
import re

import keras
import numpy as np
import pytest
from conftest import ROOT, assert_one_line, run_program

PROGRAMS = (
    "keras_resnet.train",
    "keras_resnet.evaluate",
    "keras_resnet.predict",
    "export",
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_screen(program):
    result = run_program(program, "--helpshort")
    lines = result.stdout.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    flags = re.findall(r"^  --(?:\[no\])?(\w+):", result.stdout, re.MULTILINE)
    assert 2 <= len(flags) <= 20
    assert "(default:" in result.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_unknown_flag(program):
    result = run_program(program, "--modle=resnet20")
    assert result.returncode == 1
    assert "Unknown command line flag 'modle'. Did you mean: model" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "program", ["keras_resnet.train", "keras_resnet.evaluate", "export"]
)
def test_forgotten_dashes(program):
    assert_one_line(run_program(program, "model=resnet20"), "Received: model=resnet20")


def test_help_and_flags_do_not_wait_for_tensorflow():
    """Nothing heavy is imported by a program before it has read its flags."""
    for path in (
        "train",
        "evaluate",
        "predict",
        "programs",
        "errors",
        "variants",
        "__init__",
    ):
        tree = ast.parse((ROOT / "keras_resnet" / f"{path}.py").read_text())
        top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {a.name for n in top for a in n.names} | {
            getattr(n, "module", "") for n in top
        }
        assert not names & {"keras", "tensorflow", "keras_resnet.training"}, path


def test_train_with_no_other_flag(tmp_path):
    """`--epochs` and `--virtual_devices` aside, for time and for two replicas."""
    flags = ("--strategy=mirrored", "--virtual_devices=2", "--epochs=1")
    result = run_program("keras_resnet.train", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first = result.stdout.splitlines()[0]
    for words in ("resnet20 (shortcut A", "1,437 training", "mirrored on 2 replica(s)"):
        assert words in first
    assert "into runs/resnet20-digits" in first
    assert "epoch 1/1 - loss" in result.stdout
    assert result.stderr == ""
    assert (tmp_path / "runs/resnet20-digits/final.keras").exists()
    again = run_program("keras_resnet.train", *flags, cwd=tmp_path)
    assert "has ended; nothing to do" in again.stdout


def test_evaluate(trained):
    alone = run_program("keras_resnet.evaluate", f"--model={trained}")
    assert re.match(r"\d+ of 360 held-out images right: top-1 9\d\.\d\d%", alone.stdout)
    shared = run_program(
        "keras_resnet.evaluate",
        f"--model={trained}",
        "--virtual_devices=2",
        "--batch_size=14",
    )
    assert shared.stdout == alone.stdout


@pytest.fixture
def pictures(tmp_path):
    """A three, enlarged, in two formats; a damaged file."""
    from sklearn.datasets import load_digits

    three = np.kron(load_digits().images[3], np.ones((4, 4)))[..., None] * 15.9375
    keras.utils.save_img(tmp_path / "three.png", three, scale=False)
    keras.utils.save_img(tmp_path / "three.jpg", three.repeat(3, -1), scale=False)
    (tmp_path / "half.jpg").write_bytes((tmp_path / "three.jpg").read_bytes()[:200])
    return tmp_path


def test_predict_names_what_it_cannot_read_and_goes_on(trained, pictures):
    files = ("three.png", "half.jpg", "missing.png", "three.jpg")
    result = run_program(
        "keras_resnet.predict", f"--model={trained}", *files, cwd=pictures
    )
    assert result.returncode == 1
    assert "error: half.jpg: damaged" in result.stderr
    assert "error: missing.png: No such file" in result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2 * 6
    for start, name in ((0, "three.png"), (6, "three.jpg")):
        assert lines[start] == name
        assert lines[start + 1].split()[1] == "3"
        shares = [float(line.split("%")[0]) for line in lines[start + 1 : start + 6]]
        assert shares == sorted(shares, reverse=True)


def test_predict_whole_files(trained, pictures):
    from keras_resnet.predict import predict

    path = str(pictures / "three.png")
    ((name, share),) = predict([path], str(trained), top=1)[path]
    assert name == "3"
    assert 0 < share <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["keras_resnet.predict"], "Name at least one image"),
        (["keras_resnet.evaluate", "--model=nowhere"], "there is no nowhere/run.json"),
        (["keras_resnet.train", "--model=resnet20x"], "Did you mean 'resnet20'?"),
        (["keras_resnet.train", "--model_dir=/proc/run"], "can be written"),
        (["export", "--formats=onnxx"], "Unknown format"),
    ],
)
def test_wrong_input_is_one_line(arguments, words, tmp_path):
    assert_one_line(run_program(*arguments, cwd=tmp_path), words)


def test_evaluate_on_other_classes(trained, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(5):
            keras.utils.save_img(
                tmp_path / name / f"{i}.png", np.full((8, 8, 3), 40 * i)
            )
    result = run_program(
        "keras_resnet.evaluate", f"--model={trained}", f"--dataset=folder:{tmp_path}"
    )
    assert_one_line(result, "The model knows the classes 0, 1", "cat, dog")
