"""The training loop: any network, any data set, one device or many.

`Model.fit` is not used. On Keras 3 it fails for several replicas with XLA, with
several steps for each host round trip and with several workers, and its checkpoints
replay the interrupted epoch. This loop runs the step through `strategy.run`, drives
ordinary Keras callbacks, and resumes in the middle of an epoch with nothing lost or
repeated.
"""

import math
import os
import time

import keras
import tensorflow as tf
from keras.callbacks import CallbackList

from keras_resnet.distribution import lost_worker
from keras_resnet.support import Preempted, write_file
from keras_resnet.training.batch_source import BatchSource
from keras_resnet.training.checkpoints import Checkpoints, Progress
from keras_resnet.training.epoch_log import (
    EpochLog,
    current_rate,
    format_epoch,
    last_good,
)
from keras_resnet.training.preparation import Run
from keras_resnet.training.validation import Validation
from keras_resnet.training.worker_group import Stopped, StopSignal, WorkerGroup

# Number of steps between two checks of the workers' stop flag. Each check blocks.
ASK_EVERY = 10


class Loop:
    """Takes the steps, drives the callbacks, keeps the checkpoints.

    Args:
        run: The run.
        callbacks: Keras callbacks, whose state the checkpoints hold.
        workers: The workers of the run.
    """

    def __init__(
        self, run: Run, callbacks: list[keras.callbacks.Callback], workers: WorkerGroup
    ) -> None:
        self._run, self._callbacks, self._workers = run, callbacks, workers
        self.step = run.make_step(run.total)
        run.network.optimizer = self.step.optimizer
        self._validation = Validation(run, workers)
        self._progress = Progress(callbacks)
        self._checkpoints = Checkpoints(
            os.path.join(run.model_dir, "checkpoints"),
            run.network,
            self.step,
            self._progress,
            run.spec.execution.keep_checkpoints,
        )
        self._source = BatchSource(run)
        self._stop = StopSignal()

    def train(self, verbose: int) -> None:
        """Trains to the end, from the last checkpoint if there is one.

        Args:
            verbose: 0 silent, 1 progress bar, 2 one line for each epoch.

        Raises:
            Preempted: SIGTERM came; a checkpoint was written.
            ConnectionError: Another worker is gone.
        """
        run, progress = self._run, self._progress
        callbacks = self._callback_list(verbose)
        callbacks.on_train_begin()
        run.network.stop_training = False
        is_resumed = self._checkpoints.restore()
        self._workers.check_same_step(progress.step, run.model_dir)
        if not is_resumed:
            self.step.average()
            if self._workers.is_chief:
                self._draw_first_batch()
        elif verbose:
            print(f"Resuming after step {progress.step} of {run.total}.", flush=True)
        with self._stop.handled():
            try:
                self._take_epochs(callbacks, verbose)
            except Stopped:
                self._save()
                callbacks.on_train_end()
                raise Preempted(
                    f"Stopped by SIGTERM after step {progress.step} of {run.total}; the "
                    "same command resumes"
                ) from None
            except tf.errors.OpError as error:
                if self._workers.count > 1 and lost_worker(error):
                    raise ConnectionError(
                        f"A worker is gone, after step {progress.step} of {run.total} or "
                        "a little later. Start all of them again with the same command; "
                        "they resume from the last checkpoint"
                    ) from error
                raise
        callbacks.on_train_end()

    def _callback_list(self, verbose: int) -> CallbackList:
        run = self._run
        # Its state is not in the checkpoints: it may be switched on for a resumed run.
        callbacks = list(self._callbacks)
        if run.spec.execution.tensorboard and self._workers.is_chief:
            callbacks.append(keras.callbacks.TensorBoard(run.tensorboard_dir))
        return CallbackList(
            callbacks,
            add_progbar=verbose == 1,
            model=run.network,
            verbose=verbose,
            epochs=run.epochs,
            steps=run.steps,
        )

    def _draw_first_batch(self) -> None:
        """Leaves a picture of the first training batch, as the network gets it."""
        run, drawn = self._run, self._source.draw_first()
        if drawn is None:
            return
        images, picture = drawn
        write_file(os.path.join(run.model_dir, "augmented.png"), picture)
        if run.spec.execution.tensorboard:
            with tf.summary.create_file_writer(run.tensorboard_dir).as_default():
                tf.summary.image("augmented", images, step=0, max_outputs=32)

    def _take_epochs(self, callbacks: CallbackList, verbose: int) -> None:
        run, progress, network = self._run, self._progress, self._run.network
        is_resumed = progress.step > 0
        for epoch in range(max(0, progress.step - 1) // run.steps, run.epochs):
            callbacks.on_epoch_begin(epoch)
            if is_resumed:
                progress.restore_callbacks()
            else:
                self.step.clear_sums()
            is_resumed = False
            started_at, first_step = time.monotonic(), progress.step
            logs = self._take_epoch(epoch, callbacks)
            seconds = time.monotonic() - started_at
            logs = self._end_epoch(epoch, logs, callbacks)
            if self._workers.count > 1:
                network.stop_training = self._workers.any(network.stop_training)
            if verbose == 2:
                steps = progress.step - first_step
                speed = steps * run.spec.recipe.batch_size / seconds
                left = (run.total - progress.step) * seconds / max(1, steps)
                line = format_epoch(epoch + 1, run.epochs, logs, speed, left)
                print(line, flush=True)
            if network.stop_training:
                break

    def _take_epoch(self, epoch: int, callbacks: CallbackList) -> dict[str, float]:
        """Takes the steps of an epoch that are left; returns its training logs."""
        run, progress = self._run, self._progress
        first_step = epoch * run.steps
        end = min(first_step + run.steps, run.total)
        log = EpochLog(self.step, self._checkpoints, first_step)
        while progress.step < end:
            batch = progress.step - first_step
            callbacks.on_train_batch_begin(batch)
            count = self._take_steps(first_step, end)
            callbacks.on_train_batch_end(batch + count - 1, log.recent())
            # At once, as in `fit`; several workers stop together, after the epoch.
            if run.network.stop_training and self._workers.count == 1:
                break
            if self._is_told_to_stop(count):
                raise Stopped
            if progress.step % run.spec.execution.checkpoint_every == 0:
                log.read()
                self._save()
        logs = log.read()
        self._check_weights()
        return logs

    def _take_steps(self, first_step: int, end: int) -> int:
        """Takes as many steps as the device may without Python; returns the number.

        The epoch goes from `first_step` to `end`, both counted from the run's start.
        """
        progress, execution = self._progress, self._run.spec.execution
        batches, batches_end = self._source.batches(progress.step)
        every = execution.checkpoint_every
        count = min(
            execution.steps_per_execution,
            min(end, batches_end) - progress.step,
            every - progress.step % every,
        )
        if self._workers.count > 1:
            self.step.asks_to_stop.assign(float(self._stop.is_set))
        try:
            self.step(batches, count)
        except tf.errors.OpError as error:
            if self._workers.count > 1:
                # The other workers wait for this one: no image can be replaced now.
                if not lost_worker(error):
                    self._source.refuse_damaged(progress.step)
                raise
            count = first_step + int(self.step.sums.numpy()[3]) - progress.step
            self._source.replace_damaged(progress.step + count, error)
        progress.step += count
        return count

    def _is_told_to_stop(self, count: int) -> bool:
        """Whether the run ends now, `count` steps after the last call.

        Several workers decide it after the same step.
        """
        if self._workers.count == 1:
            return self._stop.is_set
        is_asked_now = self._progress.step % ASK_EVERY < count
        return is_asked_now and bool(self.step.asked.numpy() > 0)

    def _end_epoch(
        self, epoch: int, logs: dict[str, float], callbacks: CallbackList
    ) -> dict[str, float]:
        """Evaluates the network after an epoch; returns all logs of the epoch."""

        def stop_if_told() -> None:
            if self._stop.is_set and self._workers.count == 1:
                raise Stopped

        with self.step.evaluated():
            rate = current_rate(self._run.network.optimizer)
            logs = {**logs, **self._validation(stop_if_told), "learning_rate": rate}
            if math.isnan(logs["val_loss"]):  # The weights are so large as to overflow.
                raise FloatingPointError(
                    "The loss of the held-out images is no longer a number after step "
                    f"{self._progress.step}; {last_good(self._checkpoints)}"
                )
            callbacks.on_epoch_end(epoch, logs)
        return logs

    def _check_weights(self) -> None:
        if not self.step.is_finite():
            raise FloatingPointError(
                f"The weights are no longer numbers after step {self._progress.step}; "
                f"{last_good(self._checkpoints)}"
            )

    def _save(self) -> None:
        self._check_weights()
        if self._workers.is_chief:
            self._checkpoints.save(self._progress.step)
