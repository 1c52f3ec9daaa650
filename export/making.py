"""Writes one artifact and judges it, and times all of them."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import keras
import numpy as np
import tensorflow as tf

from .artifacts import ARTIFACTS, Source
from .device import (
    RUNTIMES,
    ArtifactRow,
    Classify,
    Disagreement,
    check_answers,
    compare,
    describe_files,
    judge,
    limit_of,
    time_in_turn,
)
from .proof import Proof
from .quantization import REPAIR

# Number of images for signatures other than that of `probabilities`.
CHECKED_TWICE = 8


class JudgedArtifact(NamedTuple):
    """An artifact that was written and not refused."""

    row: ArtifactRow
    classify: Classify | None  # `None` if no program here can run it.


def make_artifact(name: str, source: Source, proof: Proof) -> JudgedArtifact:
    """Writes an artifact of `ARTIFACTS`, opens it and refuses it if it disagrees.

    Raises:
        Disagreement: The artifact differs by more than its limit, also when it is made
            of a repaired network.
    """
    artifact = ARTIFACTS[name]
    note = f" ({artifact.note})" if artifact.note else ""
    print(f"writing {artifact.path}{note}", flush=True)
    artifact.write(os.path.join(source.bundle, artifact.path), source)
    try:
        judgement, classify = _judge(name, source, proof)
    except Disagreement as error:
        # The repair is made for TFLite's way to round.
        can_be_repaired = artifact.calibrated and artifact.runtime == "LiteRT"
        if source.repair or not can_be_repaired:
            raise Disagreement(
                f"{error}. Nothing was written; --formats can leave {name} out"
            ) from None
        print(f"{error}. Trying again: {REPAIR}", flush=True)
        return make_artifact(name, source.repaired(), proof)
    fields = ("path", "runtime", "precision", "note")
    row = {field: getattr(artifact, field) for field in fields}
    row |= {"repair": source.repair} if source.repair else {}
    files = describe_files(source.bundle, [artifact.path])
    size = sum(file["bytes"] for file in files.values())
    row |= judgement | {"bytes": size, "files": files}
    return JudgedArtifact(cast(ArtifactRow, row), classify)


def _judge(
    name: str, source: Source, proof: Proof
) -> tuple[dict[str, Any], Classify | None]:
    """Opens an artifact and refuses it if it disagrees; of none that runs here: nothing.

    Returns what its row of the manifest says, and the artifact in its runtime.
    """
    artifact = ARTIFACTS[name]
    if artifact.runtime is None or artifact.precision is None:
        return {}, None
    count = len(proof.labels)
    print(f"checking {artifact.path} on {count} held-out images", flush=True)
    runtime = RUNTIMES[artifact.runtime]
    path = os.path.join(source.bundle, artifact.path)
    classify = runtime.open(path)
    answers = runtime.predict(classify, proof.images)
    comparison = compare(answers, proof.logits, proof.labels)
    limit = limit_of(artifact.precision, count, proof.modern)
    judge(name, comparison, limit)
    if artifact.check:
        artifact.check(path, source.classifier, proof.images[:CHECKED_TWICE])
    judgement = dataclasses.asdict(comparison)
    answers = runtime.predict(classify, proof.check["image"])
    check = check_answers(answers, proof.check)
    if limit.logits is None:
        del judgement["logit_difference"], check["logit_difference"]
    judgement |= {"limit": dataclasses.asdict(limit), "check": check}
    return judgement | {"signatures": runtime.describe(path)}, classify


def time_artifacts(
    model: keras.Model, artifacts: Mapping[str, JudgedArtifact], image: np.ndarray
) -> float:
    """Times the artifacts and the Keras model, compiled, in turn.

    The image is uint8, (1, height, width, channels). Each artifact's row gets its
    `latency_ms`; that of the Keras model is returned.
    """
    compiled = tf.function(model, reduce_retracing=True)

    def run_keras(pixels: np.ndarray) -> np.ndarray:
        return compiled(tf.constant(pixels), training=False).numpy()

    functions = {n: a.classify for n, a in artifacts.items() if a.classify}
    times = time_in_turn({"keras": run_keras, **functions}, image)
    for name in functions:
        artifacts[name].row["latency_ms"] = round(times[name], 3)
    return round(times["keras"], 3)
