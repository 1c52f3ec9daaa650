"""What a checkpoint costs a training run, beside its steps.

python -m benchmarks.checkpoint

Steps and checkpoints of the same run take turns, the checkpoints as a run writes
them, into a temporary folder, each removing the last but one. `checkpoint/step`
is the median over the rounds, with the lowest and the highest beside it; the
overhead is that of a run with `checkpoint_every=100`.
"""

import itertools
import tempfile

from benchmarks.cases import CASES
from benchmarks.side_by_side import milliseconds, ratios, run, take_turns, write_results


def measure(case, directory, rounds):
    """Returns the row of a case."""
    from keras_resnet.training.checkpoints import Checkpoints, Progress
    from keras_resnet.training.run_folder import RunFolder

    step, network, taken = case.training()
    progress = Progress([RunFolder(directory)])
    checkpoints = Checkpoints(directory, network, taken, progress)
    numbers = itertools.count(1)
    sides = {
        "step": lambda: (step(), taken.sums.numpy()),  # which waits for the device
        "checkpoint": lambda: checkpoints.save(next(numbers)),
    }
    times = take_turns(sides, rounds)
    compared = ratios(times["checkpoint"], times["step"], "checkpoint/step")
    return {
        **case.columns(),
        **{f"{side}_ms": milliseconds(t) for side, t in times.items()},
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
    run(main, rounds=(10, "Steps and checkpoints of each network."))
