"""Time to write a training checkpoint, compared with the time of a training step.

python -m benchmarks.checkpoint

Steps and checkpoints of one run are measured in turn. Checkpoints are written into a
temporary folder and rotated as in a training run. `checkpoint/step` is the median ratio
over all rounds, `lowest` and `highest` are its range. The overhead is computed for
`checkpoint_every=100`.
"""

import itertools
import tempfile

from benchmarks.cases import CASES
from benchmarks.side_by_side import median_ms, ratios, run, time_turns, write_results


def measure(case, directory, rounds):
    """Returns the result row of a case."""
    from keras_resnet.training.checkpoints import Checkpoints, Progress
    from keras_resnet.training.run_folder import RunFolder

    run_step, network, step = case.prepare_training()
    progress = Progress([RunFolder(directory)])
    checkpoints = Checkpoints(directory, network, step, progress)
    numbers = itertools.count(1)
    sides = {
        # `numpy()` waits until the device has finished the step.
        "step": lambda: (run_step(), step.sums.numpy()),
        "checkpoint": lambda: checkpoints.save(next(numbers)),
    }
    times = time_turns(sides, rounds)
    compared = ratios(times["checkpoint"], times["step"], "checkpoint/step")
    return {
        **case.columns(),
        **{f"{side}_ms": median_ms(t) for side, t in times.items()},
        **compared,
        "overhead_every_100": f"{compared['checkpoint/step'] / 100:.2%}",
        "rounds": rounds,
    }


def main(rounds):
    """Measures every case and writes `results/checkpoint.csv`."""
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            rows.append(measure(case, directory, rounds))
    write_results("checkpoint", rows)


if __name__ == "__main__":
    run(main, rounds=(10, "Number of steps and of checkpoints of each network."))
