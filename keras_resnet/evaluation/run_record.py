"""`run.json`, the record of a training run."""

import dataclasses
import json
import os
import sys

from keras_resnet import support
from keras_resnet.data import Preprocessing
from keras_resnet.spec import RUN_FORMAT, RunSpec, select_known_fields
from keras_resnet.support import InputError, write_json


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Description of a training run, which is stored in `run.json`.

    Attributes:
        spec: Settings of the run, with all defaults resolved.
        classes: Names of the classes, in the order of the network's outputs.
        preprocessing: Conversion of an image to the network's input.
        versions: Versions of Python and of installed packages by name.
        commit: Git commit of the code that started the run; `None` outside a checkout.
        machine: Operating system, processor type and number of CPUs.
        command: Command line that started the run.
    """

    spec: RunSpec
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    versions: dict[str, str] = dataclasses.field(default_factory=support.find_versions)
    commit: str | None = dataclasses.field(default_factory=support.find_commit)
    machine: str = dataclasses.field(default_factory=support.describe_machine)
    command: list[str] = dataclasses.field(default_factory=lambda: list(sys.argv))


def read_record(folder: str | os.PathLike[str]) -> RunRecord | None:
    """Reads `run.json` in a folder. Returns `None` if the file does not exist.

    Raises:
        InputError: If a newer version wrote the file, or the file is damaged.
    """
    path = os.path.join(folder, "run.json")
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        format_number = content.get("format", 1)
        if format_number > RUN_FORMAT:
            raise InputError(
                f"{path} has format {format_number}, from a newer keras_resnet. "
                f"Update keras_resnet to read formats above {RUN_FORMAT}"
            )
        if not content["classes"]:
            raise KeyError("classes")
        return RunRecord(
            spec=RunSpec.from_settings(content["settings"], format_number),
            classes=tuple(content["classes"]),
            preprocessing=Preprocessing(
                **select_known_fields(Preprocessing, content["preprocessing"])
            ),
            versions=content.get("versions", {}),
            commit=content.get("commit"),
            machine=content.get("machine", ""),
            command=content.get("command", []),
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
        "format": record.spec.format,
        "settings": record.spec.to_settings(),
        "preprocessing": dataclasses.asdict(record.preprocessing),
    }
    keys = ("format", "settings", "classes", "preprocessing", "versions", "commit",
            "machine", "command")  # fmt: skip
    write_json(os.path.join(folder, "run.json"), {key: content[key] for key in keys})
