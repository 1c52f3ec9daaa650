"""The training loop."""

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import (
    places_of_step,
    refuse_damaged,
    replace_damaged,
    training_batches,
)
from keras_resnet.distribution import (
    is_chief,
    iterate_batches,
    local_replicas,
    lost_worker,
    sum_over_workers,
    worker_count,
    worker_index,
)
from keras_resnet.evaluation import Evaluator
from keras_resnet.support import InputError, Preempted
from keras_resnet.training.checkpoints import Checkpoints, Progress
from keras_resnet.training.figures import write_batch
from keras_resnet.training.step import Step
from keras_resnet.weights import pixels_of


def _tensorboard(run):
    """The folder of what TensorBoard shows; its `train` and `validation` are Keras's."""
    return os.path.join(run.model_dir, "tensorboard")


def open_batches(run, preprocessing, start, stop):
    return iterate_batches(run.strategy, _dataset(run, preprocessing, start, stop))


def _dataset(run, preprocessing, start, stop):
    strategy = run.strategy
    return training_batches(
        run.images.train,
        preprocessing,
        run.recipe,
        strategy.num_replicas_in_sync,
        run.seed,
        start,
        stop,
        here=local_replicas(strategy),
        classes=len(run.images.classes),
        mean=pixels_of(run.network).mean,
        service=run.execution.data_service,
    )


# Steps from one question whether a worker was told to stop to the next: the answer is
# waited for.
ASK_EVERY = 10


class _Stop(Exception):
    """SIGTERM came."""


class Loop:
    """Takes the steps, drives the callbacks, keeps the checkpoints."""

    def __init__(self, run, callbacks):
        self.run, self.callbacks = run, callbacks
        self.step = Step(
            run.network, run.strategy, run.recipe, run.total, run.execution
        )
        run.network.optimizer = self.step.optimizer
        self.workers = worker_count(run.strategy)
        places = np.arange(
            worker_index(run.strategy), len(run.images.test), self.workers
        )
        local = len(local_replicas(run.strategy))
        self.evaluator = Evaluator(
            run.network,
            run.images.test.take(places),
            run.preprocessing,
            -(-run.recipe.batch_size // self.workers // local) * local,
            run.strategy,
        )
        self.progress = Progress(callbacks)
        self.checkpoints = Checkpoints(
            os.path.join(run.model_dir, "checkpoints"),
            run.network,
            self.step,
            self.progress,
            run.execution.keep_checkpoints,
        )
        self.batches, self.batches_end = None, 0
        self.stopping = False

    def train(self, verbose):
        """Trains to the end, from the last checkpoint if there is one."""
        run, progress = self.run, self.progress
        chief = is_chief(run.strategy)
        # Not among those whose state a checkpoint holds: it may come and go.
        watching = []
        if run.execution.tensorboard and chief:
            watching = [keras.callbacks.TensorBoard(_tensorboard(run))]
        callbacks = keras.callbacks.CallbackList(
            [*self.callbacks, *watching],
            add_progbar=verbose == 1,
            model=run.network,
            verbose=verbose,
            epochs=run.epochs,
            steps=run.steps,
        )
        callbacks.on_train_begin()
        run.network.stop_training = False
        restored = self.checkpoints.restore()
        self._compare_steps()
        if restored:
            if verbose:
                print(
                    f"Resuming after step {progress.step} of {run.total}.", flush=True
                )
        else:
            self.step.average()
            if chief:
                _draw_batch(run)
        with self._told_to_stop():
            try:
                self._take_epochs(callbacks, verbose)
            except _Stop:
                self._save()
                callbacks.on_train_end()
                raise Preempted(
                    f"Stopped by SIGTERM after step {progress.step} of {run.total}; the "
                    "same command resumes"
                ) from None
            except tf.errors.OpError as error:
                if self.workers > 1 and lost_worker(error):
                    raise ConnectionError(
                        f"A worker is gone, after step {progress.step} of {run.total} or "
                        "a little later. Start all of them again with the same command; "
                        "they resume from the last checkpoint"
                    ) from error
                raise
        callbacks.on_train_end()

    def _compare_steps(self):
        """Refuses workers that go on from different steps."""
        if self.workers == 1:
            return
        step = float(self.progress.step)
        count, summed, squares = sum_over_workers(
            self.run.strategy, tf.constant([1.0, step, step**2], tf.float64)
        ).numpy()
        if round(count * squares) != round(summed**2):
            raise InputError(
                "The workers found different checkpoints; model_dir must be a folder "
                f"that they share. Received: {self.run.model_dir!r}, where this one found "
                f"step {self.progress.step}"
            )

    @contextlib.contextmanager
    def _told_to_stop(self):
        """SIGTERM, by which machines are taken away, ends the run between two steps."""

        def stop(*_):
            self.stopping = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _take_epochs(self, callbacks, verbose):
        run, progress, network = self.run, self.progress, self.run.network
        resuming = progress.step > 0
        for epoch in range(max(0, progress.step - 1) // run.steps, run.epochs):
            callbacks.on_epoch_begin(epoch)
            if resuming:
                progress.restore_callbacks()
            else:
                self.step.sums.assign(tf.zeros_like(self.step.sums))
            resuming = False
            begun, began_at, shown = time.monotonic(), progress.step, 0.0
            end = min((epoch + 1) * run.steps, run.total)
            while progress.step < end:
                batch = progress.step - epoch * run.steps
                callbacks.on_train_batch_begin(batch)
                count = self._take_steps(epoch, end)
                # Reading the sums waits for the device: ten times a second.
                if time.monotonic() - shown > 0.1:
                    logs, shown = self._logs(epoch), time.monotonic()
                callbacks.on_train_batch_end(batch + count - 1, logs)
                # At once, as in `fit`; several workers together, after the epoch.
                if network.stop_training and self.workers == 1:
                    break
                self._stop_if_told(count)
                if progress.step % run.execution.checkpoint_every == 0:
                    self._logs(epoch)
                    self._save()
            logs = self._logs(epoch)
            self._check_weights()
            took = time.monotonic() - begun
            with self.step.evaluated():
                rate = keras.ops.convert_to_numpy(network.optimizer.learning_rate)
                logs = {**logs, **self._held_out(), "learning_rate": float(rate)}
                if math.isnan(logs["val_loss"]):  # Of weights so large as to overflow.
                    raise FloatingPointError(
                        "The loss of the held-out images is no longer a number after "
                        f"step {progress.step}; {self._last_good()}"
                    )
                callbacks.on_epoch_end(epoch, logs)
            if self.workers > 1:
                asks = tf.constant(float(network.stop_training), tf.float64)
                network.stop_training = bool(sum_over_workers(run.strategy, asks) > 0)
            if verbose == 2:
                values = " - ".join(
                    f"{key}: {value:.4f}" for key, value in logs.items()
                )
                done = progress.step - began_at
                print(
                    f"epoch {epoch + 1}/{run.epochs} - {values} - "
                    f"{done * run.recipe.batch_size / took:.0f} images/s - "
                    f"{_duration((run.total - progress.step) * took / max(1, done))} left",
                    flush=True,
                )
            if network.stop_training:
                break

    def _take_steps(self, epoch, end):
        """Takes as many steps as the device may without Python; returns the number."""
        run, progress = self.run, self.progress
        if self.batches is None or progress.step == self.batches_end:
            self._open_batches()
        every = run.execution.checkpoint_every
        count = min(
            run.execution.steps_per_execution,
            min(end, self.batches_end) - progress.step,
            every - progress.step % every,
        )
        if self.workers > 1:
            self.step.asks_to_stop.assign(float(self.stopping))
        try:
            self.step(self.batches, count)
        except tf.errors.OpError as error:
            if self.workers > 1:
                # The others wait for this one: no image can stand in any more.
                if not lost_worker(error):
                    places = self._places_of(progress.step)
                    refuse_damaged(run.images.train.take(places), run.preprocessing)
                raise
            done = int(self.step.sums.numpy()[3])
            count = epoch * run.steps + done - progress.step
            self._replace_damaged(progress.step + count, error)
        progress.step += count
        return count

    def _open_batches(self):
        """From the next step on, up to where images of another size begin."""
        run, step = self.run, self.progress.step
        preprocessing, self.batches_end = run.preprocessing, run.total
        if sizes := run.recipe.sizes:
            part = step * len(sizes) // run.total
            self.batches_end = -(-(part + 1) * run.total // len(sizes))
            preprocessing = dataclasses.replace(
                preprocessing, height=sizes[part], width=sizes[part]
            )
        self.batches = open_batches(run, preprocessing, step, self.batches_end)

    def _replace_damaged(self, step, error):
        """Goes on without the images of a step that cannot be decoded."""
        run, places = self.run, self._places_of(step)
        train = replace_damaged(run.images.train, run.preprocessing, places, error)
        run.images = dataclasses.replace(run.images, train=train)
        self.batches = None

    def _places_of(self, step):
        run = self.run
        return places_of_step(
            run.images.train,
            run.recipe,
            run.strategy.num_replicas_in_sync,
            run.seed,
            step,
        )

    def _stop_if_told(self, count):
        told = self.stopping
        if self.workers > 1:  # All of them, after the same step.
            asking = self.progress.step % ASK_EVERY < count
            told = asking and bool(self.step.asked.numpy() > 0)
        if told:
            raise _Stop

    def _check_weights(self):
        if not self.step.is_finite():
            raise FloatingPointError(
                f"The weights are no longer numbers after step {self.progress.step}; "
                f"{self._last_good()}"
            )

    def _save(self):
        self._check_weights()
        if is_chief(self.run.strategy):
            self.checkpoints.save(self.progress.step)

    def _logs(self, epoch):
        loss, right, count, good = self.step.sums.numpy().tolist()
        if not math.isfinite(loss):
            step = epoch * self.run.steps + int(good) + 1
            rate = self.run.network.optimizer.learning_rate
            rate = float(keras.ops.convert_to_numpy(rate))
            raise FloatingPointError(
                f"The loss of step {step} is no longer a number, at a learning rate of "
                f"about {rate:.3g}; {self._last_good()}"
            )
        return {"loss": loss / count, "accuracy": right / count}

    def _last_good(self):
        path = self.checkpoints.newest()
        if path is None:
            return "there is no checkpoint before it. A lower learning_rate may help"
        return f"the last good checkpoint is {path}. A lower learning_rate may help"

    def _held_out(self):
        """Loss and accuracy on the held-out images, of all workers together."""

        def between_steps():
            if self.stopping and self.workers == 1:
                raise _Stop

        found = self.evaluator.predict(between_steps).summary()
        loss, accuracy, count = found["loss"], found["accuracy"], found["images"]
        if self.workers > 1:
            sums = tf.constant([loss * count, accuracy * count, count], tf.float64)
            loss, right, count = sum_over_workers(self.run.strategy, sums).numpy()
            loss, accuracy = float(loss / count), float(right / count)
        return {"val_loss": loss, "val_accuracy": accuracy}


def _draw_batch(run):
    """Leaves a picture of the first training batch, as the network gets it."""
    sizes = run.recipe.sizes
    size = {"height": sizes[0], "width": sizes[0]} if sizes else {}
    preprocessing = dataclasses.replace(run.preprocessing, **size)
    try:
        images, labels, _ = next(iter(_dataset(run, preprocessing, 0, 1)))
    except tf.errors.OpError:
        return  # The first step will say which image is damaged.
    write_batch(run.model_dir, images.numpy(), labels.numpy(), run.images.classes)
    if run.execution.tensorboard:
        with tf.summary.create_file_writer(_tensorboard(run)).as_default():
            tf.summary.image("augmented", images, step=0, max_outputs=32)


def _duration(seconds):
    """Such as 3:05 or 2:03:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
