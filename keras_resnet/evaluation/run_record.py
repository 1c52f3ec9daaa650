"""`run.json`, the record of a training run."""

import dataclasses
import json
import os
import sys

from keras_resnet import support
from keras_resnet.data import Preprocessing
from keras_resnet.spec import RunSpec, select_known_fields
from keras_resnet.support import InputError, write_json

# Format number in the files that this version writes. Version 0.1.0 wrote no number.
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Description of a training run, the content of its `run.json`.

    Attributes:
        spec: Settings of the run, with all defaults resolved.
        classes: Names of the classes, in the order of the network's outputs.
        preprocessing: Conversion of an image to the network's input.
        versions: Versions of Python and of installed packages by name.
        commit: Git commit of the code that started the run; `None` outside a checkout.
        machine: Description of the machine.
        command: Command line that started the run.
        format: Format number of the file.
    """

    spec: RunSpec
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    versions: dict[str, str] = dataclasses.field(default_factory=support.find_versions)
    commit: str | None = dataclasses.field(default_factory=support.find_commit)
    machine: str = dataclasses.field(default_factory=support.describe_machine)
    command: list[str] = dataclasses.field(default_factory=lambda: list(sys.argv))
    format: int = FORMAT


def read_record(folder: str | os.PathLike[str]) -> RunRecord | None:
    """Reads `run.json` of a folder. Returns `None` if the folder has no such file.

    Raises:
        InputError: If the file is damaged, or a newer version wrote it.
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
                f"{path} has format {format_number}, from a newer keras_resnet. This "
                f"version reads formats up to {FORMAT}"
            )
        if not record["classes"]:
            raise KeyError("classes")
        return RunRecord(
            spec=RunSpec.from_settings(record["settings"]),
            classes=tuple(record["classes"]),
            preprocessing=Preprocessing(
                **select_known_fields(Preprocessing, record["preprocessing"])
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
            f"{path} is damaged, or another version of keras_resnet wrote it"
        ) from None


def write_record(folder: str | os.PathLike[str], record: RunRecord) -> None:
    """Writes `run.json` into a folder.

    Raises:
        OSError: If the file cannot be written.
    """
    content = vars(record) | {
        "settings": record.spec.to_settings(),
        "preprocessing": dataclasses.asdict(record.preprocessing),
    }
    keys = ("format", "settings", "classes", "preprocessing", "versions", "commit",
            "machine", "command")  # fmt: skip
    write_json(os.path.join(folder, "run.json"), {key: content[key] for key in keys})
