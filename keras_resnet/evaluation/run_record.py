"""`run.json`, the record of a training run."""

import dataclasses
import os
import pathlib
import re
import sys
from typing import Annotated, Any

from keras_resnet import support
from keras_resnet.data import Preprocessing
from keras_resnet.spec import RUN_FORMAT, RunSpec, select_known_fields
from keras_resnet.support import Count, InputError, check_type, read_json, write_json


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
        final_sha256: Hash of `final.keras` in hexadecimal digits; `None` until the run
            has ended, and in runs of version 0.1.0.
        devices: Steps from which a run used a strategy with a number of replicas. The
            list is empty if both never changed. Otherwise, the weights are not
            bit-identical to those of a run that never changed its devices.
    """

    spec: RunSpec
    classes: Annotated[tuple[str, ...], len]
    preprocessing: Preprocessing
    versions: dict[str, str] = dataclasses.field(default_factory=support.find_versions)
    commit: str | None = dataclasses.field(default_factory=support.find_commit)
    machine: str = dataclasses.field(default_factory=support.describe_machine)
    command: list[str] = dataclasses.field(default_factory=lambda: list(sys.argv))
    final_sha256: str | None = None
    devices: list[tuple[Count, str, Count]] = dataclasses.field(default_factory=list)


def read_record(folder: str | os.PathLike[str]) -> RunRecord | None:
    """Reads `run.json` in a folder. Returns `None` if the file does not exist.

    Raises:
        InputError: If a newer version wrote the file, or the file is damaged.
    """
    path = os.path.join(folder, "run.json")
    if not os.path.exists(path):
        return None
    try:
        content = read_json(path)
        format_number = content.get("format", 1)
        check_type(format_number, int, "format")
        if format_number <= RUN_FORMAT:
            return _to_record(content, format_number)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f": {error}" if isinstance(error, InputError) else ""
        raise InputError(
            f"{path} is damaged, or another version of keras_resnet wrote it{reason}"
        ) from None
    raise InputError(
        f"{path} has format {format_number}, from a newer keras_resnet. "
        f"Update keras_resnet to read formats above {RUN_FORMAT}"
    )


def _to_record(content: dict[str, Any], format_number: int) -> RunRecord:
    """Returns the record in the content of a `run.json`, after checking every field."""
    check_type(content["classes"], list[str], "classes")
    preprocessing = select_known_fields(Preprocessing, content["preprocessing"])
    record = RunRecord(
        spec=RunSpec.from_settings(content["settings"], format_number),
        classes=tuple(content["classes"]),
        preprocessing=Preprocessing(**preprocessing),
        versions=content.get("versions", {}),
        commit=content.get("commit"),
        machine=content.get("machine", ""),
        command=content.get("command", []),
        final_sha256=content.get("final_sha256"),
        devices=[tuple(item) for item in content.get("devices", [])],
    )
    check_type(record, RunRecord, "run.json")
    record.spec.check()
    return record


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
            "machine", "command", "final_sha256", "devices")  # fmt: skip
    write_json(os.path.join(folder, "run.json"), {key: content[key] for key in keys})


def find_checkpoints(folder: str | os.PathLike[str]) -> dict[int, str]:
    """Returns the paths of a run's training checkpoints by their steps, in order.

    `folder` is the folder `checkpoints` of the run, which need not exist.
    """
    paths = {}
    # Version 0.1.0 wrote the files `step-8.index` and `step-8.data-*`. In this order, a
    # folder of the same step replaces them.
    for path in sorted(pathlib.Path(folder).glob("step-*"), reverse=True):
        if match := re.fullmatch(r"step-(\d{1,18})(\.index)?", path.name):
            state = path.with_suffix("") if match[2] else path / "state"
            paths[int(match[1])] = str(state)
    return dict(sorted(paths.items()))
