"""Writing, checking and timing of artifacts."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import keras
import numpy as np
import tensorflow as tf

from . import device
from .artifacts import ARTIFACTS, Source
from .quantization import REPAIR_DESCRIPTION
from .reference import Reference

NUM_CHECK_IMAGES = 8  # Number of test images that `Artifact.check` receives.


class CheckedArtifact(NamedTuple):
    """An artifact whose difference from the Keras model is within its limit."""

    row: device.ArtifactRow  # Entry of the artifact in the manifest.
    classify: device.ClassifyFunction | None  # `None` for browser-only artifacts.


def make_artifact(name: str, source: Source, reference: Reference) -> CheckedArtifact:
    """Writes the artifact `ARTIFACTS[name]` and compares it with the Keras model.

    If an int8 `.tflite` file exceeds its limit, repairs the network and tries again.

    Raises:
        Disagreement: If the artifact exceeds its limit, even with a repaired network.
    """
    artifact = ARTIFACTS[name]
    note = f" ({artifact.note})" if artifact.note else ""
    print(f"Writing {artifact.path}{note}", flush=True)
    artifact.write(os.path.join(source.bundle_dir, artifact.path), source)
    try:
        results, classify = _compare_with_keras(name, source, reference)
    except device.Disagreement as error:
        # The repair optimises weights for TFLite's rounding, not for other formats.
        can_be_repaired = artifact.calibrated and artifact.runtime == "LiteRT"
        if source.repair or not can_be_repaired:
            raise device.Disagreement(
                f"{error}. No bundle was written; to omit {name}, set --formats"
            ) from None
        print(f"{error}. Repairing the network: {REPAIR_DESCRIPTION}", flush=True)
        return make_artifact(name, source.with_repaired_network(), reference)
    fields = ("path", "runtime", "precision", "note")
    row = {field: getattr(artifact, field) for field in fields}
    row |= {"repair": source.repair} if source.repair else {}
    files = device.describe_files(source.bundle_dir, [artifact.path])
    size = sum(file["bytes"] for file in files.values())
    row |= results | {"bytes": size, "files": files}
    return CheckedArtifact(cast(device.ArtifactRow, row), classify)


def _compare_with_keras(
    name: str, source: Source, reference: Reference
) -> tuple[dict[str, Any], device.ClassifyFunction | None]:
    """Compares an artifact with the Keras model and checks the artifact's limit.

    Returns measurements for the artifact's row in the manifest, and the function that
    runs the artifact. For browser-only artifacts: `{}` and `None`.
    """
    artifact = ARTIFACTS[name]
    if artifact.runtime is None or artifact.precision is None:
        return {}, None
    count = len(reference.labels)
    print(f"Comparing {artifact.path} with Keras on {count} test images", flush=True)
    runtime = device.RUNTIMES[artifact.runtime]
    path = os.path.join(source.bundle_dir, artifact.path)
    classify = runtime.open(path)
    probabilities = runtime.predict(classify, reference.images)
    comparison = device.compare(probabilities, reference.logits, reference.labels)
    limit = device.find_limit(artifact.precision, count, reference.is_modern)
    device.check_limit(name, comparison, limit)
    if artifact.check:
        artifact.check(path, source.classifier, reference.images[:NUM_CHECK_IMAGES])
    results = dataclasses.asdict(comparison)
    probabilities = runtime.predict(classify, reference.check["image"])
    check_results = device.compare_with_check(probabilities, reference.check)
    if limit.logits is None:
        del results["logit_difference"], check_results["logit_difference"]
    results |= {"limit": dataclasses.asdict(limit), "check": check_results}
    return results | {"signatures": runtime.describe(path)}, classify


def time_artifacts(
    model: keras.Model, artifacts: Mapping[str, CheckedArtifact], image: np.ndarray
) -> float:
    """Measures the latency of all artifacts and of the compiled Keras model, in turn.

    `image` is uint8, (1, height, width, channels). Sets `latency_ms` in each artifact's
    row, and returns the latency of the Keras model in milliseconds.
    """
    compiled_model = tf.function(model, reduce_retracing=True)

    def run_keras(pixels: np.ndarray) -> np.ndarray:
        return compiled_model(tf.constant(pixels), training=False).numpy()

    functions = {n: a.classify for n, a in artifacts.items() if a.classify}
    times = device.time_in_turn({"keras": run_keras, **functions}, image)
    for name in functions:
        artifacts[name].row["latency_ms"] = round(times[name], 3)
    return round(times["keras"], 3)
