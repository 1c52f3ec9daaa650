"""Command line of the studies. The flags are `--report` and the fields of `Options`."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from absl import flags

from keras_resnet.studies.lib.study import Options, Study, option_to_text
from keras_resnet.support import InputError, add_flags, option, read_flags, run_command

# Makes absl list the flags in the `--help` of the module that runs, which is the study.
flags.disclaim_key_flags()


def run_with_options(
    run: Callable[[dict[str, Any], bool], object], defaults: Options | None = None
) -> None:
    """Defines and parses the flags, then calls `run`.

    Args:
        run: Function with two arguments: a dict with the fields of `Options` that the
            user has set, and whether the user has set `--report`.
        defaults: Defaults for `--help`. `None` if the defaults depend on the study.
    """
    flags_class = _make_flags_class(defaults)
    add_flags(flags_class)

    def main(argv: list[str]) -> None:
        del argv
        values = vars(read_flags(flags_class))
        changes = {name: value for name, value in values.items() if value is not None}
        report_only = changes.pop("report")
        if "depths" in changes:
            changes["depths"] = _parse_depths(changes["depths"])
        run(changes, report_only)

    run_command(main)


def _make_flags_class(defaults: Options | None) -> type:
    """Returns a dataclass of the flags. Options that are not set default to `None`."""
    report = option(False, "Make the figure and the report from an existing CSV file.")
    fields: list[tuple[str, Any, Any]] = [("report", bool, report)]
    for field in dataclasses.fields(Options):
        default = getattr(defaults or Options(), field.name)
        if default and not defaults and field.name != "output":
            default = "default depends on the study"
        description = field.metadata["description"]
        if default:
            description += f" ({option_to_text(default)})"
        field_type: Any = field.type
        flag_option = option(None, description, *field.metadata["limits"])
        fields.append((field.name, field_type | None, flag_option))
    return dataclasses.make_dataclass("Flags", fields)


def _parse_depths(values: tuple[str, ...]) -> tuple[int, ...]:
    with contextlib.suppress(ValueError):
        if depths := tuple(map(int, values)):
            return depths
    raise InputError(
        "Depths must be integers separated by commas, such as --depths=8,20. "
        f"Received: {','.join(values)!r}"
    )


def run_study(study: Study) -> None:
    """Runs a study with the options from the command line."""

    def run(changes: dict[str, Any], report_only: bool) -> None:
        study.run(dataclasses.replace(study.defaults, **changes), report_only)

    run_with_options(run, study.defaults)
