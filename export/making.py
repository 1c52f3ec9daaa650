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
    time_in_turn,
)
from .proof import Proof
from .quantization import REPAIR

# Number of images for signatures other than that of `probabilities`.
CHECKED_TWICE = 8


class JudgedArtifact(NamedTuple):
    """An artifact that was written and not refused.

    Attributes:
        row: Its row of the manifest.
        classify: The artifact in its runtime; `None` if no program here can run it.
    """

    row: ArtifactRow
    classify: Classify | None


def make_artifact(name: str, source: Source, proof: Proof) -> JudgedArtifact:
    """Writes an artifact, opens it and refuses it if it disagrees.

    Args:
        name: Key of `ARTIFACTS`.
        source: What the artifact is made of.
        proof: What the artifact is judged on.

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
        if source.repair or not artifact.can_be_repaired:
            raise Disagreement(
                f"{error}. Nothing was written; --formats can leave {name} out"
            ) from None
        print(f"{error}. Trying again: {REPAIR}", flush=True)
        return make_artifact(name, source.repaired(), proof)
    files = describe_files(source.bundle, [artifact.path])
    row = {
        "path": artifact.path,
        "runtime": artifact.runtime,
        "precision": artifact.precision,
        "note": artifact.note,
        **({"repair": source.repair} if source.repair else {}),
        **judgement,
        "bytes": sum(file["bytes"] for file in files.values()),
        "files": files,
    }
    return JudgedArtifact(cast(ArtifactRow, row), classify)


def _judge(
    name: str, source: Source, proof: Proof
) -> tuple[dict[str, Any], Classify | None]:
    """Opens an artifact, and refuses it if it disagrees.

    Returns:
        What its row of the manifest says of the judgement, and the artifact in its
        runtime. Empty and `None` if no program here can run it.
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
    limit = proof.limit(artifact.precision)
    judge(name, comparison, limit)
    if artifact.check:
        artifact.check(path, source.classifier, proof.images[:CHECKED_TWICE])
    judgement = dataclasses.asdict(comparison)
    check_row = check_answers(
        runtime.predict(classify, proof.check["image"]), proof.check
    )
    if limit.logits is None:
        del judgement["logit_difference"], check_row["logit_difference"]
    judgement["limit"] = dataclasses.asdict(limit)
    judgement["check"] = check_row
    judgement["signatures"] = runtime.describe(path)
    return judgement, classify


def time_artifacts(
    model: keras.Model, artifacts: Mapping[str, JudgedArtifact], image: np.ndarray
) -> float:
    """Times the artifacts and the Keras model, compiled, in turn.

    Args:
        model: The Keras model.
        artifacts: The artifacts by name. Each row gets its `latency_ms`.
        image: uint8, (1, height, width, channels).

    Returns:
        The latency of the Keras model, in milliseconds.
    """
    compiled = tf.function(model, reduce_retracing=True)

    def run_keras(pixels: np.ndarray) -> np.ndarray:
        return compiled(tf.constant(pixels), training=False).numpy()

    functions = {n: a.classify for n, a in artifacts.items() if a.classify}
    times = time_in_turn({"keras": run_keras, **functions}, image)
    for name in functions:
        artifacts[name].row["latency_ms"] = round(times[name], 3)
    return round(times["keras"], 3)
