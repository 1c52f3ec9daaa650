"""The training loop, for one or several devices and workers.

`Model.fit` is not used, because in Keras 3 it fails for several workers. It also fails
if several replicas use XLA or several steps per execution, and it repeats the whole
epoch after an interruption. This loop runs the step through `strategy.run`, calls
ordinary Keras callbacks, and resumes within an epoch without losing or repeating steps.
"""

import math
import os
import time

import keras
import tensorflow as tf
from keras.callbacks import CallbackList

from keras_resnet.distribution import is_lost_worker_error
from keras_resnet.support import Interrupted, Preempted, write_file
from keras_resnet.training.batch_source import BatchSource
from keras_resnet.training.checkpoints import Checkpoints, Progress
from keras_resnet.training.epoch_log import (
    EpochLog,
    describe_last_checkpoint,
    format_epoch,
    read_learning_rate,
)
from keras_resnet.training.preparation import Run
from keras_resnet.training.validation import Validation
from keras_resnet.training.worker_group import StopFlag, StopRequested, WorkerGroup

# Number of steps between two checks of the workers' stop flag. Each check blocks until
# the device has finished the pending steps.
STOP_CHECK_INTERVAL = 10


class Loop:
    """Runs the training steps, calls the callbacks and writes the checkpoints."""

    def __init__(
        self, run: Run, callbacks: list[keras.callbacks.Callback], workers: WorkerGroup
    ) -> None:
        self._run, self._callbacks, self._workers = run, callbacks, workers
        self.step = run.make_step(run.total_steps)
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
        self._stop_flag = StopFlag()

    def train(self, verbose: int) -> None:
        """Trains to the end of the run, from the last checkpoint if there is one.

        Args:
            verbose: 0 for no output, 1 for a progress bar, 2 for one line per epoch.

        Raises:
            Preempted: If SIGTERM was received. A checkpoint has been written.
            KeyboardInterrupt: If Ctrl-C (SIGINT) was pressed. A checkpoint has been
                written, unless Ctrl-C was pressed twice.
            ConnectionError: If the connection to another worker is lost.
        """
        run, progress = self._run, self._progress
        callbacks = self._make_callback_list(verbose)
        callbacks.on_train_begin()
        run.network.stop_training = False
        is_resumed = self._checkpoints.restore()
        self._workers.check_same_step(progress.step, run.model_dir)
        if not is_resumed:
            self.step.reset_averages()
            if self._workers.is_chief:
                self._draw_first_batch()
        if progress.damaged:
            self._source.substitute(progress.damaged)
        if is_resumed and verbose:
            total = run.total_steps
            print(f"Resuming after step {progress.step} of {total}.", flush=True)
        with self._stop_flag.set_by_signals():
            try:
                self._train_epochs(callbacks, verbose)
            except StopRequested:
                self._save()
                callbacks.on_train_end()
                cause = self._stop_flag.cause or "another worker"
                error_type = Interrupted if cause == "Ctrl-C" else Preempted
                raise error_type(
                    f"Stopped by {cause} after step {progress.step} of "
                    f"{run.total_steps}. The same command resumes the run"
                ) from None
        callbacks.on_train_end()

    def _make_callback_list(self, verbose: int) -> CallbackList:
        run = self._run
        # Checkpoints save the callbacks in `self._callbacks`. TensorBoard is added to a
        # copy of this list, so that a resumed run can change the option `tensorboard`.
        callbacks = list(self._callbacks)
        if run.spec.execution.tensorboard and self._workers.is_chief:
            callbacks.append(keras.callbacks.TensorBoard(run.tensorboard_dir))
        return CallbackList(
            callbacks,
            add_progbar=verbose == 1,
            model=run.network,
            verbose=verbose,
            epochs=run.epochs,
            steps=run.steps_per_epoch,
        )

    def _draw_first_batch(self) -> None:
        """Writes a figure of the first batch, after augmentation, to the run folder."""
        run, first_batch = self._run, self._source.draw_first_batch()
        if first_batch is None:
            return
        images, figure = first_batch
        write_file(os.path.join(run.model_dir, "augmented.png"), figure)
        if run.spec.execution.tensorboard:
            with tf.summary.create_file_writer(run.tensorboard_dir).as_default():
                tf.summary.image("augmented", images, step=0, max_outputs=32)

    def _train_epochs(self, callbacks: CallbackList, verbose: int) -> None:
        run, progress, network = self._run, self._progress, self._run.network
        is_resumed = progress.step > 0
        first_epoch = max(0, progress.step - 1) // run.steps_per_epoch
        for epoch in range(first_epoch, run.epochs):
            callbacks.on_epoch_begin(epoch)
            if is_resumed and epoch == first_epoch:
                progress.restore_callbacks()
            else:
                self.step.clear_sums()
            started_at, first_step = time.monotonic(), progress.step
            logs = self._train_epoch(epoch, callbacks)
            seconds = time.monotonic() - started_at
            logs = self._finish_epoch(epoch, logs, callbacks)
            if self._workers.count > 1:
                network.stop_training = self._workers.any(network.stop_training)
            if verbose == 2:
                count = progress.step - first_step
                speed = count * run.spec.recipe.batch_size / seconds
                time_left = (run.total_steps - progress.step) * seconds / max(1, count)
                line = format_epoch(epoch + 1, run.epochs, logs, speed, time_left)
                print(line, flush=True)
            if network.stop_training:
                break

    def _train_epoch(self, epoch: int, callbacks: CallbackList) -> dict[str, float]:
        """Runs the rest of an epoch; returns the epoch's mean loss and accuracy."""
        run, progress = self._run, self._progress
        first_step = epoch * run.steps_per_epoch
        end_step = min(first_step + run.steps_per_epoch, run.total_steps)
        log = EpochLog(self.step, self._checkpoints, first_step)
        while progress.step < end_step:
            batch_index = progress.step - first_step
            callbacks.on_train_batch_begin(batch_index)
            count = self._take_steps(first_step, end_step)
            callbacks.on_train_batch_end(batch_index + count - 1, log.read_recent())
            # A single worker stops at once, as in `fit`. Several workers stop together
            # after the epoch, since `stop_training` may be true on only some workers.
            if run.network.stop_training and self._workers.count == 1:
                break
            if self._must_stop(count):
                raise StopRequested
            if progress.step % run.spec.execution.checkpoint_every == 0:
                log.read()
                self._save()
        logs = log.read()
        self._check_weights()
        return logs

    def _take_steps(self, first_step: int, end_step: int) -> int:
        """Runs one or several training steps; returns the number of completed steps.

        Steps `first_step` to `end_step - 1` belong to the current epoch. A call stops
        where the epoch ends, the image size changes or a checkpoint is due.
        """
        progress, execution = self._progress, self._run.spec.execution
        batches, batches_end = self._source.batches_from(progress.step)
        interval = execution.checkpoint_every
        count = min(
            execution.steps_per_execution,
            min(end_step, batches_end) - progress.step,
            interval - progress.step % interval,
        )
        if self._workers.count > 1:
            self.step.stop_request.assign(float(bool(self._stop_flag.cause)))
        try:
            self.step(batches, count)
        except tf.errors.OpError as error:
            if self._workers.count > 1 and is_lost_worker_error(error):
                raise
            # A call may run several steps and fail after some of them. `sums[3]` is the
            # number of steps that the epoch has completed.
            count = first_step + int(self.step.sums.numpy()[3]) - progress.step
            step = progress.step + count
            progress.damaged = self._source.replace_damaged(step, error)
            if not count:
                return self._take_steps(first_step, end_step)
        progress.step += count
        return count

    def _must_stop(self, count: int) -> bool:
        """Returns whether the run must stop now, `count` steps after the last check.

        If there are several workers, all read the shared flag of `Step`, so that all
        workers stop after the same step.
        """
        if self._workers.count == 1:
            return bool(self._stop_flag.cause)
        is_check_due = self._progress.step % STOP_CHECK_INTERVAL < count
        return is_check_due and bool(self.step.stop_flag.numpy() > 0)

    def _finish_epoch(
        self, epoch: int, logs: dict[str, float], callbacks: CallbackList
    ) -> dict[str, float]:
        """Evaluates the network after an epoch; returns `logs` with the new metrics."""

        def check_stop() -> None:
            if self._stop_flag.cause and self._workers.count == 1:
                raise StopRequested

        with self.step.load_averaged_weights():
            rate = read_learning_rate(self._run.network.optimizer)
            logs = {**logs, **self._validation(check_stop), "learning_rate": rate}
            if math.isnan(logs["val_loss"]):  # Large weights make activations overflow.
                raise FloatingPointError(
                    f"The validation loss is NaN after step {self._progress.step}; "
                    f"{describe_last_checkpoint(self._checkpoints)}"
                )
            callbacks.on_epoch_end(epoch, logs)
        return logs

    def _check_weights(self) -> None:
        if not self.step.has_finite_weights():
            raise FloatingPointError(
                f"The weights are not finite after step {self._progress.step}; "
                f"{describe_last_checkpoint(self._checkpoints)}"
            )

    def _save(self) -> None:
        self._check_weights()
        if self._workers.is_chief:
            self._checkpoints.save(self._progress.step)
