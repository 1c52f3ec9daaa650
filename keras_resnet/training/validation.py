"""Loss and accuracy on the validation split, over all workers."""

from collections.abc import Callable

import numpy as np

from keras_resnet.distribution import local_replicas
from keras_resnet.evaluation import Evaluator
from keras_resnet.training.preparation import Run
from keras_resnet.training.worker_group import WorkerGroup


class Validation:
    """Evaluates a network on the validation split. Workers evaluate distinct images."""

    def __init__(self, run: Run, workers: WorkerGroup) -> None:
        self._workers = workers
        indices = np.arange(workers.index, len(run.images.test), workers.count)
        replicas = len(local_replicas(run.strategy))
        replica_batch_size = -(-run.spec.recipe.batch_size // workers.count // replicas)
        self._evaluator = Evaluator(
            run.network,
            run.images.test.take(indices),
            run.preprocessing,
            replica_batch_size * replicas,
            run.strategy,
        )

    def __call__(self, on_step: Callable[[], None]) -> dict[str, float]:
        """Evaluates the current weights, and calls `on_step` after each batch.

        Returns:
            A dict with `val_loss`, the mean cross-entropy, and `val_accuracy`, 0 to 1.
        """
        summary = self._evaluator.predict(on_step).summarise()
        loss, accuracy, count = summary["loss"], summary["accuracy"], summary["images"]
        if self._workers.count > 1:
            sums = [loss * count, accuracy * count, count]
            loss, accuracy, count = self._workers.sum(sums)
            loss, accuracy = loss / count, accuracy / count
        return {"val_loss": loss, "val_accuracy": accuracy}
