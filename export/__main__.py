"""Exports a trained network as a bundle that proves itself.

python -m export --model=runs/demo --output=artifacts/demo
python -m export --model=runs/demo --output=artifacts/demo --formats=web
python -m export.verify artifacts/demo
python -m export.latency artifacts/demo
"""

from keras_resnet.support import define_flags, read_flags, run_command

from .options import ExportOptions


def main(argv: list[str]) -> None:
    """Reads the flags, exports and prints the closing table."""
    del argv
    from .bundle import export
    from .device import closing_table

    options = read_flags(ExportOptions)
    table = closing_table(export(options))
    print(f"\n{table}\n\nin {options.output}, described by manifest.json")


if __name__ == "__main__":
    define_flags(ExportOptions)
    run_command(main)
