"""`run.json`, the record of a training run."""

import dataclasses
import json
import os
import sys

from keras_resnet.data import Preprocessing
from keras_resnet.support import InputError, commit, machine, versions, write_file


def read_record(folder):
    """Returns the contents of a folder's `run.json`; `None` if there is none."""
    path = os.path.join(folder, "run.json")
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        Preprocessing(**record["preprocessing"])
        if not isinstance(record["settings"], dict) or not record["classes"]:
            raise KeyError
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise InputError(
            f"{path} is damaged, or was not written by this version of keras_resnet"
        ) from None
    return record


def write_record(folder, settings, classes, preprocessing):
    """Writes `run.json`: settings, versions, commit, machine."""
    record = {
        "settings": settings,
        "classes": classes,
        "preprocessing": dataclasses.asdict(preprocessing),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "command": sys.argv,
    }
    write_file(
        os.path.join(folder, "run.json"),
        json.dumps(record, indent=2, ensure_ascii=False) + "\n",
    )
