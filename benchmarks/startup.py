"""Time of importing this package, beside importing Keras alone.

python -m benchmarks.startup

Each side is a new process. Ours imports Keras and then every public name of
keras_resnet, without which the package imports nothing heavy at all. `peer/ours`
is the median over the rounds, with the lowest and the highest beside it; 0.95 is
an import that costs 1.05 times Keras's.
"""

import subprocess
import sys

from absl import flags

from benchmarks.side_by_side import compare, take_turns, write_results

OURS = "import keras, keras_resnet as k; [getattr(k, name) for name in k.__all__]"


def main(argv):
    """Measures both and writes `results/startup.csv`."""
    del argv
    sides = {"ours": OURS, "import keras": "import keras"}
    commands = {name: [sys.executable, "-c", code] for name, code in sides.items()}
    times = take_turns(
        {
            name: lambda command=command: subprocess.run(command, check=True)
            for name, command in commands.items()
        },
        flags.FLAGS.rounds,
    )
    write_results("startup", [compare(times, "import keras")])


if __name__ == "__main__":
    from keras_resnet.support import program

    flags.DEFINE_integer("rounds", 9, "Imports of each side.", 1)
    program.run_command(main)
