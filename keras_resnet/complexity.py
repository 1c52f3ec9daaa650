"""Parameters and multiply-adds of a network.

    python -m keras_resnet.complexity

prints the paper's Table 1 and Table 6 beside ours; with --model, every layer of
one network.
"""

from keras_resnet.nets import beside_paper, profile
from keras_resnet.support import format_table


def compare_with_paper():
    """Returns the paper's Tables 1 and 6 beside our networks', as text."""
    rows = [row for row, _ in beside_paper()]

    def part(table, title):
        head = ("network", "shortcut", "layers", "paper", "ours", "off by", "")
        lines = [_beside(row) for row in rows if row["table"] == table]
        return f"Table {table}: {title}\n{format_table([head, *lines], left=(0, 1, 6))}"

    return "\n\n".join(
        [part(1, "multiply-adds, in 1e9"), part(6, "parameters, in 1e6")]
    )


def _beside(row):
    """A row of `beside_paper` in words."""
    printed, value = row["paper"], row["ours"]
    decimals = len(str(printed).split(".")[1])
    rounds = round(value, decimals) == printed
    return (
        row["network"],
        row["shortcut"],
        str(row["layers"]),
        str(printed),
        f"{value:.3f}",
        f"{value / printed - 1:+.1%}",
        "" if rounds else f"does not round to {printed}",
    )


def main(argv):
    """Prints the paper's tables, or the layers of the network in --model."""
    del argv
    from absl import flags

    if name := flags.FLAGS.model:
        from keras_resnet.zoo import ResNet

        print(profile(ResNet(name, shortcut=flags.FLAGS.shortcut)))
    else:
        print(compare_with_paper())


if __name__ == "__main__":
    from absl import flags

    from keras_resnet.support import run_command

    flags.DEFINE_string(
        "model", None, "Network to print layer by layer; none prints the tables."
    )
    flags.DEFINE_string(
        "shortcut", None, "A, B, C or none; default: the paper's for that network."
    )
    run_command(main)
