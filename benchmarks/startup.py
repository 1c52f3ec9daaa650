"""Time to import this package, compared with the import of Keras alone.

python -m benchmarks.startup

Each side is a new process. "ours" imports Keras and then uses every public name of
keras_resnet, since the package alone imports nothing heavy. `peer/ours` is the median
ratio over all rounds, `lowest` and `highest` are its range. A ratio of 0.95 means that
the import takes 1.05 times as long as that of Keras.
"""

import functools
import subprocess
import sys

from benchmarks.side_by_side import compare, run, time_turns, write_results

OURS = "import keras, keras_resnet as k; [getattr(k, name) for name in k.__all__]"


def main(rounds):
    """Measures both sides and writes `results/startup.csv`."""
    start = functools.partial(subprocess.run, check=True)
    sides = {
        name: functools.partial(start, [sys.executable, "-c", code])
        for name, code in (("ours", OURS), ("import keras", "import keras"))
    }
    times = time_turns(sides, rounds)
    write_results("startup", [compare(times, "import keras")])


if __name__ == "__main__":
    run(main, rounds=(9, "Number of imports by each side."))
