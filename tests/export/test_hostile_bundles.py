"""Bundles that an attacker wrote, and folders that export must not replace.

The bundles are copies of one that version 0.1.0 wrote.
"""

import io
import json
import os
import shutil
import signal
import tarfile
import zipfile

import grammars
import numpy as np
import pytest
from children import Child, run_child
from conftest import ROOT, make_deep_folder
from hypothesis import given
from hypothesis import strategies as st

from export import bundle, latency
from export.device import card, read_check, read_manifest, timing
from export.device.manifest import describe_files
from export.verify import verify
from keras_resnet.support.errors import InputError


@pytest.fixture(scope="module")
def old_bundle(tmp_path_factory):
    """Bundle with the artifacts `float32` and `int8` that version 0.1.0 wrote."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ROOT / "tests/fixtures/v0.1.0.tar.xz") as archive:
        members = [m for m in archive if m.name.startswith("v0.1.0/bundle/")]
        archive.extractall(folder, members, filter="data")
    return folder / "v0.1.0" / "bundle"


@pytest.fixture
def folder(old_bundle, tmp_path):
    """A copy of the bundle that a test may change."""
    return shutil.copytree(old_bundle, tmp_path / "demo")


def change_manifest(folder, change):
    """Calls `change` with the content of manifest.json, and writes the content."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def list_file(folder, name, listed_name=None):
    """Lists a file with its size and sha256 in the manifest."""
    entry = describe_files(folder, [name])[name]
    change_manifest(folder, lambda m: m["files"].update({listed_name or name: entry}))


@given(rng=st.randoms(use_true_random=False))
def test_an_edited_manifest_is_refused_or_verified(old_bundle, rng):
    path = old_bundle / "manifest.json"
    content = path.read_bytes()
    path.write_bytes(grammars.edit_json(content, rng))
    try:
        findings, _ = verify(old_bundle)
        assert {finding.verdict for finding in findings} <= {"ok", "wrong", "unchecked"}
        assert "\x1b" not in card.format_card(read_manifest(old_bundle))
    except InputError as error:
        assert "manifest.json cannot be used" in str(error)
    finally:
        path.write_bytes(content)


def set_value(manifest, value, *keys):
    for key in keys[:-1]:
        manifest = manifest[key]
    if value is None:
        del manifest[keys[-1]]
    else:
        manifest[keys[-1]] = value


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        (None, ["check"]),
        ([], ["classes"]),
        (["a"], ["classes"]),
        (["\ud800"] * 10, ["classes"]),
        (7, ["name"]),
        (None, ["preprocessing", "crop"]),
        (0, ["preprocessing", "crop"]),
        (2**40, ["preprocessing", "height"]),
        ("nearest", ["preprocessing", "interpolation"]),
        (0, ["evaluation", "images"]),
        (361, ["evaluation", "keras_right"]),
        (9, ["evaluation", "right_by_class"]),
        ([1, 2], ["evaluation", "images_by_class"]),
        (float("nan"), ["evaluation", "keras_latency_ms"]),
        (2**80, ["check", "images"]),
        ({"images": 3, "dataset": "d"}, ["calibration"]),
        (3, ["versions", "keras"]),
        ([], ["artifacts"]),
        ("int8\n```", ["artifacts", "int8", "path"]),
        (3, ["artifacts", "int8", "runtime"]),
        ("int4", ["artifacts", "int8", "precision"]),
        (None, ["artifacts", "int8", "right"]),
        (999, ["artifacts", "int8", "right"]),
        ([1], ["artifacts", "int8", "loss_interval"]),
        ({}, ["artifacts", "int8", "limit"]),
        ({"right": 3}, ["artifacts", "int8", "check"]),
        ({}, ["artifacts", "int8", "files"]),
        ("float32.tflite", ["artifacts", "int8", "path"]),
        (2**62, ["files", "labels.txt", "bytes"]),
        (None, ["files", "labels.txt", "sha256"]),
        (0, ["settings", "batch_size"]),
        ("resnet7", ["settings", "model"]),
        ([1] * 3, ["settings", "images"]),
        (3, ["settings", "licence"]),
        ([], ["latency"]),
        ({"images": [1]}, ["calibration"]),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(folder, value, keys):
    change_manifest(folder, lambda manifest: set_value(manifest, value, *keys))
    with pytest.raises(
        InputError, match=r"manifest\.json cannot be used: it is damaged"
    ):
        read_manifest(folder)


@pytest.mark.parametrize(
    "name",
    ["../secret.txt", "/secret.txt", "a/../../secret.txt", "./labels.txt", "a//b", "a/",
     "C:\\secret.txt", "..\\secret.txt", ".hidden", "a\nb", "`id`", "a b", ""],
)  # fmt: skip
def test_a_path_out_of_the_bundle_is_refused(folder, name):
    """The size and the sha256 of the file are correct."""
    (folder.parent / "secret.txt").write_text("secret")
    list_file(folder, "../secret.txt", name)
    with pytest.raises(
        InputError, match=r"manifest\.json cannot be used: it is damaged"
    ):
        verify(folder)


def test_a_link_out_of_the_bundle_is_wrong(folder):
    (folder.parent / "secret.txt").write_bytes((folder / "labels.txt").read_bytes())
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").symlink_to("../secret.txt")
    (folder / "link").symlink_to("/")
    findings, passed = verify(folder)
    assert not passed
    assert [f.details for f in findings if f.verdict == "wrong"] == [
        "link is unexpected",
        "labels.txt is outside of the bundle, because of a link",
    ]
    link = folder.parent / "link"
    link.symlink_to(folder)
    (folder / "link").unlink()
    (folder / "labels.txt").unlink()
    (folder.parent / "secret.txt").rename(folder / "labels.txt")
    assert verify(link)[1], "the folder itself may be a link"


def test_a_pipe_instead_of_a_file_does_not_block(folder):
    (folder / "labels.txt").unlink()
    os.mkfifo(folder / "labels.txt")
    assert verify(folder)[0][0].details == "labels.txt is missing"
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(InputError, match="regular file"):
        verify(folder)


def test_a_deep_folder_is_searched(folder):
    with make_deep_folder(f"{folder}/d") as deep_folder:
        os.symlink("/", f"{deep_folder}/link")
        assert verify(folder)[0][0].details.endswith("/d/link is unexpected")
        os.remove(f"{deep_folder}/link")


def make_npz(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def make_npz_with_header(header):
    """Returns check.npz whose array `image` has only a header."""
    content, member = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("image.npy", member.getvalue())
    return content.getvalue()


CHECK = {
    "image": np.zeros((360, 8, 8, 1), np.uint8),
    "probability": np.full((360, 10), 0.1, np.float32),
    "largest_logit": np.float64(1),
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\5\6" + bytes(18),
        make_npz(),
        make_npz(**CHECK | {"image": np.array([{}], object)}),
        make_npz(**CHECK | {"image": np.zeros((9, 8, 8, 1), np.uint8)}),
        make_npz(**CHECK | {"image": np.zeros((360, 8, 8, 1))}),
        make_npz(**CHECK | {"label": np.zeros((360, 2), np.int32)}),
        make_npz(**CHECK | {"probability": np.full((360, 10), np.nan, np.float32)}),
        make_npz(**CHECK | {"probability": np.zeros((360, 10), np.float32)}),
        make_npz(**CHECK | {"largest_logit": np.float64(0)}),
        make_npz(**CHECK | {"largest_logit": np.float64("inf")}),
        make_npz_with_header(
            {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8, 1)}
        ),
        make_npz_with_header(
            {"descr": "|u1", "fortran_order": False, "shape": (360, 8, 8, 1)}
        ),
        make_npz_with_header(
            {"descr": "|u1", "fortran_order": True, "shape": (360, 8, 8, 1)}
        ),
    ],
)
def test_hostile_check_images_are_wrong(folder, content):
    (folder / "check.npz").write_bytes(content)
    list_file(folder, "check.npz")
    findings, passed = verify(folder)
    assert not passed
    assert findings[-1][:2] == ("check.npz", "wrong")
    with pytest.raises(InputError, match=r"check\.npz cannot be used"):
        timing.measure_latency(folder)


def test_check_images_beyond_the_limit_are_not_allocated(folder):
    """The manifest agrees with the header about 10**12 images."""
    change_manifest(folder, lambda m: set_value(m, 10**12, "check", "images"))
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8, 1)}
    (folder / "check.npz").write_bytes(make_npz_with_header(header))
    with pytest.raises(InputError, match=r"check\.npz cannot be used"):
        read_check(folder, read_manifest(folder))
    with open(folder / "check.npz", "wb") as file:
        file.truncate(2**40)  # The file is sparse and takes no space.
    with pytest.raises(InputError, match="at most"):
        read_check(folder, read_manifest(folder))


def test_artifacts_with_an_unknown_runtime_are_not_measured(folder):
    def change(manifest):
        manifest["artifacts"]["int8"]["runtime"] = "Abacus"
        manifest["artifacts"]["float32"]["runtime"] = None

    change_manifest(folder, change)
    (folder / "latency.png").touch()  # Of a command that was killed.
    assert timing.measure_latency(folder) == (
        [],
        {
            "int8": "this version does not support Abacus",
            "float32": "it runs only in browsers",
        },
    )


def test_a_figure_shows_any_name(folder):
    """matplotlib would parse a text between dollar signs as a formula."""
    manifest = read_manifest(folder) | {"name": "$\\frac$\x1b\n"}
    row = {"artifact": "int8", "threads": 1, "batch": 1, "median_ms": 1.0}
    assert latency.draw_figure([row], manifest).startswith(b"\x89PNG")


def test_an_unchanged_bundle_may_be_replaced(folder):
    bundle._check_replaceable(str(folder))
    (folder / "int8.tflite").unlink()
    bundle._check_replaceable(str(folder))


def make_foreign(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    list_file(folder, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.joinpath("MODEL_CARD.md").write_text("mine"),
         r"MODEL_CARD\.md differs from the exported file"),
        (lambda f: make_foreign(f, "thesis.tex"),
         r"thesis\.tex is not a file that export writes"),
        (lambda f: make_foreign(f, "saved_model/2/saved_model.pb"),
         r"saved_model/2/saved_model\.pb is not a file that export writes"),
        (lambda f: f.joinpath("link").symlink_to("/"), "link is unexpected"),
        (lambda f: f.joinpath("notes.txt").touch(), r"notes\.txt is unexpected"),
    ],
)  # fmt: skip
def test_a_folder_with_foreign_or_changed_files_is_not_replaced(
    folder, change, message
):
    """A crafted manifest lists the foreign files with their correct sha256."""
    change(folder)
    with pytest.raises(InputError, match=f"{message}.* Move such files"):
        bundle._check_replaceable(str(folder))


@pytest.mark.slow
def test_the_next_export_removes_what_a_killed_export_left(trained_run, tmp_path):
    arguments = (
        "export", f"--model={trained_run}", "--output=demo", "--formats=float32",
        "--images=20",
    )  # fmt: skip
    fault = ("kill_on", "open", "*MODEL_CARD.md*")
    result = run_child(*arguments, cwd=tmp_path, faults=[fault])
    assert result.returncode == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".demo.")
    # The folder also contains the folder of the converters' files.
    assert {"float32.tflite", "labels.txt"} < set(os.listdir(leftover))
    assert list(leftover.glob("tmp*/*/saved_model.pb"))
    result = run_child(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert os.listdir(tmp_path) == ["demo"]
    assert verify(tmp_path / "demo")[1]


@pytest.mark.slow
def test_two_exports_into_one_folder_leave_one_complete_bundle(trained_run, tmp_path):
    """The second export begins before the first one ends."""
    processes = [
        Child(
            "export", f"--model={trained_run}", "--output=demo",
            f"--formats={name}", "--images=20", cwd=tmp_path,
        )
        for name in ("float32", "float16")
    ]  # fmt: skip
    results = [process.wait() for process in processes]
    assert [result.returncode for result in results] == [0, 0], results
    assert os.listdir(tmp_path) == ["demo"]
    findings, passed = verify(tmp_path / "demo")
    assert passed and len(findings) == 2


@pytest.mark.slow
def test_files_that_appear_during_an_export_are_kept(trained_run, folder, monkeypatch):
    write_description = bundle.write_description

    def write(*args):
        write_description(*args)
        (folder / "notes.txt").write_text("mine")

    monkeypatch.setattr(bundle, "write_description", write)
    with pytest.raises(InputError, match=r"notes\.txt is unexpected"):
        bundle.export(str(trained_run), str(folder), ["float32"], images=20)
    assert (folder / "notes.txt").read_text() == "mine"
    assert os.listdir(folder.parent) == ["demo"]
