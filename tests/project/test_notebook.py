import os

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient


@pytest.mark.clients
def test_the_quickstart_notebook_runs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "the notebook must be committed without outputs"
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=os.fspath(ROOT))
    printed_texts = [
        "".join(output.get("text", "") for output in cell.get("outputs", []))
        for cell in notebook.cells
    ]
    assert any(
        "25,557,032 parameters, 3.86e9 multiply-adds" in text for text in printed_texts
    )
    assert any("int8.tflite" in text for text in printed_texts)
    predictions, labels = printed_texts[-1].splitlines()[-2:]
    pairs = zip(parse_digits(predictions), parse_digits(labels), strict=True)
    assert sum(prediction == label for prediction, label in pairs) >= 8


def parse_digits(text):
    """Returns the numbers in a printed list, whose items look like `3` or `np.int64(3)`."""
    return [int(item.strip("[] )").split("(")[-1]) for item in text.split(", ")]
