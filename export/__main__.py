"""Exports a trained network as a bundle of checked artifacts.

python -m export --model=runs/demo --output=artifacts/demo
python -m export --model=runs/demo --output=artifacts/demo --formats=web
python -m export.verify artifacts/demo
python -m export.latency artifacts/demo
"""

from keras_resnet.support import add_flags, read_flags, run_command

from .options import ExportOptions


def main(argv: list[str]) -> None:
    """Reads the flags, writes the bundle and prints a summary."""
    del argv
    from .bundle import export
    from .device import format_summary

    options = read_flags(ExportOptions)
    summary = format_summary(export(options))
    print(f"\n{summary}\n\nThe bundle is in {options.output} (see manifest.json).")


if __name__ == "__main__":
    add_flags(ExportOptions)
    run_command(main)
