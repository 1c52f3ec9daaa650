"""Loss and accuracy on the validation split, over all workers."""

from collections.abc import Callable

import numpy as np

from keras_resnet.distribution import local_replicas
from keras_resnet.evaluation import Evaluator
from keras_resnet.training.preparation import Run
from keras_resnet.training.worker_group import WorkerGroup


class Validation:
    """Evaluates the network of a run; each worker takes a part of the images."""

    def __init__(self, run: Run, workers: WorkerGroup) -> None:
        self._workers = workers
        places = np.arange(workers.index, len(run.images.test), workers.count)
        replicas = len(local_replicas(run.strategy))
        per_replica = -(-run.spec.recipe.batch_size // workers.count // replicas)
        self._evaluator = Evaluator(
            run.network,
            run.images.test.take(places),
            run.preprocessing,
            per_replica * replicas,
            run.strategy,
        )

    def __call__(self, on_step: Callable[[], None]) -> dict[str, float]:
        """Evaluates the network as it is now, and calls `on_step` after each step.

        Returns:
            `val_loss`, the mean cross-entropy, and `val_accuracy`, from 0 to 1.
        """
        summary = self._evaluator.predict(on_step).summary()
        loss, accuracy, count = summary["loss"], summary["accuracy"], summary["images"]
        if self._workers.count > 1:
            sums = [loss * count, accuracy * count, count]
            loss, accuracy, count = self._workers.sum(sums)
            loss, accuracy = loss / count, accuracy / count
        return {"val_loss": loss, "val_accuracy": accuracy}
