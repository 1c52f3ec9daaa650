"""How every study is started: flags made of `Options`, then one call."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from absl import flags

from keras_resnet.studies.lib.study import Options, Study, as_text
from keras_resnet.support import (
    InputError,
    define_flags,
    option,
    read_flags,
    run_command,
)

# Flags that are defined here belong to the study that calls it: --helpshort lists them.
flags.disclaim_key_flags()


def run_with_options(
    run: Callable[[dict[str, Any], bool], object], defaults: Options | None = None
) -> None:
    """Defines the flags, parses them and runs.

    Arguments of `run` are the fields of `Options` that were given, and whether to make the
    report alone. The help shows `defaults`; `None` is where each study has its own.
    """
    flags_class = _without_defaults(defaults)
    define_flags(flags_class)

    def begin(argv: list[str]) -> None:
        del argv
        values = vars(read_flags(flags_class))
        given = {name: value for name, value in values.items() if value is not None}
        measured = given.pop("report")
        if "depths" in given:
            given["depths"] = _whole_numbers(given["depths"])
        run(given, measured)

    run_command(begin)


def _without_defaults(defaults: Options | None) -> type:
    """Returns a class of `report` and these options, `None` unless they are given."""
    report = option(False, "Make the report again from its CSV; train nothing.")
    fields: list[tuple[str, Any, Any]] = [("report", bool, report)]
    for field in dataclasses.fields(Options):
        default = getattr(defaults or Options(), field.name)
        if default and not defaults and field.name != "output":
            default = "each study's own"
        description = field.metadata["description"]
        if default:
            description += f" ({as_text(default)})"
        kind: Any = field.type
        optional = option(None, description, field.metadata["lower"])
        fields.append((field.name, kind | None, optional))
    return dataclasses.make_dataclass("Flags", fields)


def _whole_numbers(texts: tuple[str, ...]) -> tuple[int, ...]:
    with contextlib.suppress(ValueError):
        if depths := tuple(map(int, texts)):
            return depths
    raise InputError(
        "depths must be whole numbers with commas between, such as --depths=8,20. "
        f"Received: {','.join(texts)!r}"
    )


def run_study(study: Study) -> None:
    """Runs one study as a program."""

    def run(changes: dict[str, Any], measured: bool) -> None:
        study.run(dataclasses.replace(study.defaults, **changes), measured)

    run_with_options(run, study.defaults)
