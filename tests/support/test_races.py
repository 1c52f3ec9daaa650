"""Two processes that write the same results at once.

Both processes wait for each other just before they rename their first temporary file or
folder, or lock the folder of the studies.
"""

import csv
import json
import shutil
import zipfile

import pytest
from children import Child, run_child
from conftest import assert_one_line

pytestmark = pytest.mark.slow

REPLACE_FILE, REPLACE_FOLDER = ("os", "replace"), ("os", "rename")
LOCK = ("keras_resnet.training", "lock_folder")
COMMANDS = {
    "evaluation": (
        REPLACE_FILE, "keras_resnet.evaluate", "--model=run", "--output=out",
        "--predictions=out/predictions.csv",
    ),
    "range test": (
        REPLACE_FILE, "keras_resnet.train", "--find_lr", "--model=cifar_resnet8",
        "--model_dir=out",
    ),
    "study": (
        LOCK, "keras_resnet.studies.responses", "--output=out", "--depths=8,14",
        "--images=50", "--seeds=1", "--epochs=1", "--workers=0",
    ),
    "conversion": (
        REPLACE_FILE, "keras_resnet.convert", "run/final.keras", "out.safetensors",
    ),
    "conversion to Keras": (
        REPLACE_FILE, "keras_resnet.convert", "run/final.keras", "out.keras",
    ),
    "export": (
        REPLACE_FOLDER, "export", "--model=run", "--output=out", "--formats=float32",
    ),
}  # fmt: skip


def assert_whole(path):
    """Checks that a file can be read to its end."""
    content = path.read_bytes()
    if path.suffix == ".json":
        assert json.loads(content)
    elif path.suffix == ".csv":
        rows = list(csv.reader(content.decode().splitlines()))
        assert len(rows) > 1 and len({len(row) for row in rows}) == 1
    elif path.suffix == ".png":
        assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")
    elif path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    elif path.suffix == ".safetensors":
        header_size = int.from_bytes(content[:8], "little")
        tensors = json.loads(content[8 : 8 + header_size])
        tensors.pop("__metadata__")
        last_end = max(tensor["data_offsets"][1] for tensor in tensors.values())
        assert len(content) == 8 + header_size + last_end
    else:
        assert content


def list_files(folder):
    return sorted(path for path in folder.glob("**/*") if path.is_file())


@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_end_with_one_whole_result(name, trained_run, tmp_path):
    """Two exports replace a bundle; the other commands write new files.

    One of two studies is refused.
    """
    (module, function), *command = COMMANDS[name]
    shutil.copytree(trained_run, tmp_path / "run")
    result = run_child(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    paths = list_files(tmp_path)
    if name != "export":
        for path in set(paths) - set(list_files(tmp_path / "run")):
            path.unlink()
    (tmp_path / "meeting").mkdir()
    fault = ("call_before", module, function, "_meet", 1, str(tmp_path / "meeting"))
    processes = [Child(*command, cwd=tmp_path, faults=[fault]) for _ in range(2)]
    results = [process.wait(300) for process in processes]
    if name == "study":
        results.sort(key=lambda result: result.returncode)
        assert_one_line(results.pop(), "Another process is training into")
    for result in results:
        assert result.returncode == 0, result.stderr
    assert len(list_files(tmp_path / "meeting")) == 2
    shutil.rmtree(tmp_path / "meeting")
    assert list_files(tmp_path) == paths
    for path in list_files(tmp_path):
        assert_whole(path)
    if name == "export":
        result = run_child("export.verify", "out", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
