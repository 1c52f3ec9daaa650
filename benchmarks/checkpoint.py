"""Time to write a training checkpoint, compared with the time of a training step.

python -m benchmarks.checkpoint

Steps and checkpoints of one run are measured in turn. Checkpoints are written into a
temporary folder and rotated as in a training run. `checkpoint/step` is the time of a
checkpoint divided by the time of a step, as the median over all rounds; `lowest` and
`highest` are the extremes. `overhead_every_100` is the overhead of training with
`checkpoint_every=100`.
"""

import itertools
import statistics
import tempfile

from benchmarks.cases import CASES
from benchmarks.side_by_side import run, summarise_ratios, time_turns, write_results


def measure(case, directory, num_rounds):
    from keras_resnet.training.checkpoints import Checkpoints, Progress
    from keras_resnet.training.run_folder import RunFolder

    run_step, network, step = case.prepare_training()
    progress = Progress([RunFolder(directory)])
    checkpoints = Checkpoints(directory, network, step, progress)
    steps = itertools.count(1)
    functions = {
        # `numpy()` waits until the device has finished the step.
        "step": lambda: (run_step(), step.sums.numpy()),
        "checkpoint": lambda: checkpoints.save(next(steps)),
    }
    times = time_turns(functions, num_rounds)
    ratios = summarise_ratios(times["checkpoint"], times["step"], "checkpoint/step")
    return {
        **case.to_columns(),
        **{f"{k}_ms": round(1000 * statistics.median(t), 1) for k, t in times.items()},
        **ratios,
        "overhead_every_100": f"{ratios['checkpoint/step'] / 100:.2%}",
        "rounds": num_rounds,
    }


def main(num_rounds):
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            rows.append(measure(case, directory, num_rounds))
    write_results("checkpoint", rows)


if __name__ == "__main__":
    run(main, rounds=(10, "Number of rounds, each of one step and one checkpoint."))
