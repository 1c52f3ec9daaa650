"""Time of importing this package, beside importing Keras alone.

python -m benchmarks.startup

Each side is a new process. Ours imports Keras and then every public name of
keras_resnet, without which the package imports nothing heavy at all. `peer/ours`
is the median over the rounds, with the lowest and the highest beside it; 0.95 is
an import that costs 1.05 times Keras's.
"""

import functools
import subprocess
import sys

from benchmarks.side_by_side import compare, run, take_turns, write_results

OURS = "import keras, keras_resnet as k; [getattr(k, name) for name in k.__all__]"


def main(rounds):
    """Measures both and writes `results/startup.csv`."""
    start = functools.partial(subprocess.run, check=True)
    sides = {
        name: functools.partial(start, [sys.executable, "-c", code])
        for name, code in (("ours", OURS), ("import keras", "import keras"))
    }
    times = take_turns(sides, rounds)
    write_results("startup", [compare(times, "import keras")])


if __name__ == "__main__":
    run(main, rounds=(9, "Imports of each side."))
