"""Power failures at each moment of a training run.

`power_loss.Recorder` saves the folders that a power failure could leave before each
change of the run folder. The run resumes from each of these folders.
"""

import re

import pytest
from children import assert_same_results, run_child
from power_loss import copy_state

from keras_resnet.training.run import train

SETTINGS = {"strategy": "one_device", "epochs": 2, "batch_size": 480}
FLAGS = [f"--{name}={value}" for name, value in SETTINGS.items()]
FLAGS += ["--model=cifar_resnet8", "--set=checkpoint_every=2", "--model_dir=run"]


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory):
    """Folders `disk/run`, an undisturbed run of 6 steps, and `states`."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "disk").mkdir()
    fault = ("record_power_losses", str(folder / "disk"), str(folder / "states"))
    result = run_child(
        "keras_resnet.train", *FLAGS, cwd=folder / "disk", faults=[fault], timeout=300
    )
    assert (result.returncode, result.stderr) == (0, "")
    return folder


def list_states(recorded_run):
    states = sorted((recorded_run / "states").iterdir())
    assert len(states) > 50
    kinds = {state.name.partition("-")[2] for state in states}
    assert kinds >= {"flushed", "named", "killed"}
    return states


def resume(state, recorded_run, folder, capsys):
    """Resumes from a state. Returns the step after which the run resumed, or "ended"."""
    copy_state(state, folder)
    train(
        "cifar_resnet8",
        **SETTINGS,
        checkpoint_every=2,
        model_dir=str(folder / "run"),
        verbose=2,
    )
    output, error = capsys.readouterr()
    assert error == "", state.name
    assert_same_results(folder / "run", recorded_run / "disk" / "run")
    assert not list(folder.glob("run/**/.*")), state.name
    if "has ended" in output:
        return "ended"
    match = re.search(r"Resuming after step (\d+)", output)
    return int(match[1]) if match else 0


@pytest.mark.slow
def test_a_run_resumes_after_some_power_failures(recorded_run, tmp_path, capsys):
    states = list_states(recorded_run)[::4]
    steps = [resume(state, recorded_run, tmp_path, capsys) for state in states]
    assert {0, 2, 4, 6, "ended"} == set(steps)
    numbers = [7 if step == "ended" else step for step in steps]
    # A checkpoint that was complete is never lost again.
    assert numbers == sorted(numbers)


@pytest.mark.full
def test_a_run_resumes_after_every_power_failure(recorded_run, tmp_path, capsys):
    for state in list_states(recorded_run):
        resume(state, recorded_run, tmp_path, capsys)
