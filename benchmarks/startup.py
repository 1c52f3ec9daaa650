"""Time to import this package, compared with the import of Keras alone.

python -m benchmarks.startup

Each import runs in a new process. "ours" imports Keras and then accesses every public
name of keras_resnet, because `import keras_resnet` alone loads nothing. `peer/ours` is
the time of Keras alone divided by the time of "ours", as the median over all rounds;
`lowest` and `highest` are the extremes. At 0.95, "ours" takes 1.05 times as long.
"""

import functools
import subprocess
import sys

from benchmarks.side_by_side import make_row, run, time_turns, write_results

OUR_CODE = "import keras, keras_resnet as k; [getattr(k, name) for name in k.__all__]"


def main(num_rounds):
    run_process = functools.partial(subprocess.run, check=True)
    imports = {
        name: functools.partial(run_process, [sys.executable, "-c", code])
        for name, code in (("ours", OUR_CODE), ("import keras", "import keras"))
    }
    times = time_turns(imports, num_rounds)
    write_results("startup", [make_row(times, "import keras")])


if __name__ == "__main__":
    run(main, rounds=(9, "Number of imports of each package."))
