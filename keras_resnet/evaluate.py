"""Evaluates a trained network on held-out images, each counted exactly once.

python -m keras_resnet.evaluate --model=runs/resnet20-digits
"""

from absl import flags


def evaluate(
    model="runs/resnet20-digits",
    dataset=None,
    data_dir=None,
    batch_size=256,
    strategy="mirrored",
    virtual_devices=0,
):
    """Evaluates a run's model on the held-out images of a data set.

    Args:
        model: a run folder, or a `.keras` file in one.
        dataset: see `keras_resnet.data.load_dataset`; `None` is the one that the
            model was trained on.
        data_dir: where TFDS keeps its sets.
        batch_size: images in a step, over all replicas; changes no result.
        strategy: `"one_device"` or `"mirrored"`.
        virtual_devices: splits the CPU in that many devices, for trying out.

    Returns:
        See `keras_resnet.evaluation.Evaluator`.

    Raises:
        InputError: an argument cannot be used.
    """
    from keras_resnet.evaluation import Evaluator
    from keras_resnet.runs import load_dataset_for, load_run
    from keras_resnet.strategies import make_strategy

    strategy = make_strategy(strategy, virtual_devices)
    with strategy.scope():
        run = load_run(model)
    images = load_dataset_for(run, dataset, data_dir)
    return Evaluator(run.model, images.test, run.preprocessing, batch_size, strategy)()


def main(argv):
    """Reads the flags, evaluates and prints one line."""
    del argv
    found = evaluate(**{name: flags.FLAGS[name].value for name in _FLAGS})
    right = round(found["accuracy"] * found["images"])
    print(
        f"{right:,} of {found['images']:,} held-out images right: top-1 "
        f"{found['accuracy']:.2%}, top-5 {found['top5_accuracy']:.2%}, "
        f"loss {found['loss']:.4f}"
    )


_FLAGS = ("model", "dataset", "data_dir", "batch_size", "strategy", "virtual_devices")

if __name__ == "__main__":
    from keras_resnet import programs

    flags.DEFINE_string(
        "model", "runs/resnet20-digits", "Run folder, or a .keras file in one."
    )
    flags.DEFINE_string(
        "dataset", None, "digits, folder:PATH or a TFDS name; the model's own."
    )
    flags.DEFINE_string(
        "data_dir", None, "Folder of prepared TFDS sets; TFDS's own if not given."
    )
    flags.DEFINE_integer("batch_size", 256, "Images a step, all replicas together.", 1)
    flags.DEFINE_string(
        "strategy", "mirrored", "one_device or mirrored (all GPUs, or the CPU)."
    )
    flags.DEFINE_integer(
        "virtual_devices", 0, "Split the CPU in that many, for trying out.", 0
    )
    programs.run(main)
