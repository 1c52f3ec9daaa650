"""`run.json`, the record of a training run."""

import dataclasses
import json
import os
import sys

from keras_resnet.data import Preprocessing
from keras_resnet.spec import RunSpec, known_fields
from keras_resnet.support import InputError, commit, machine, versions, write_json

# A higher number is a newer version's. Files of version 0.1.0 have none.
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run folder says of its run.

    Attributes:
        spec: The run, with everything resolved.
        classes: Name of each class, in the order of the outputs.
        preprocessing: From an image to the network's input.
        versions: Versions of Python and of packages, by name.
        commit: Commit of the checkout that began the run, if there was one.
        machine: Description of the machine.
        command: Command line that began the run.
        format: Format number of the file.
    """

    spec: RunSpec
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    commit: str | None = dataclasses.field(default_factory=commit)
    machine: str = dataclasses.field(default_factory=machine)
    command: list[str] = dataclasses.field(default_factory=lambda: list(sys.argv))
    format: int = FORMAT


def read_record(folder: str | os.PathLike[str]) -> RunRecord | None:
    """Reads `run.json` of a folder.

    Returns:
        The record; `None` if the folder has none.

    Raises:
        InputError: The file is damaged, or a newer version wrote it.
    """
    path = os.path.join(folder, "run.json")
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        format_number = record.get("format", FORMAT)
        if format_number > FORMAT:
            raise InputError(
                f"{path} has format {format_number}, from a newer keras_resnet; this "
                f"version reads up to {FORMAT}"
            )
        if not record["classes"]:
            raise KeyError("classes")
        return RunRecord(
            spec=RunSpec.from_settings(record["settings"]),
            classes=tuple(record["classes"]),
            preprocessing=Preprocessing(
                **known_fields(Preprocessing, record["preprocessing"])
            ),
            versions=record.get("versions", {}),
            commit=record.get("commit"),
            machine=record.get("machine", ""),
            command=record.get("command", []),
            format=format_number,
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path} is damaged, or was not written by this version of keras_resnet"
        ) from None


def write_record(folder: str | os.PathLike[str], record: RunRecord) -> None:
    """Writes `run.json` into a folder.

    Raises:
        OSError: It could not be written.
    """
    content = vars(record) | {
        "settings": record.spec.to_settings(),
        "preprocessing": dataclasses.asdict(record.preprocessing),
    }
    order = ("format", "settings", "classes", "preprocessing", "versions", "commit",
             "machine", "command")  # fmt: skip
    write_json(
        os.path.join(folder, "run.json"), {name: content[name] for name in order}
    )
