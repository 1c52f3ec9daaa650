"""Exports a trained network as a bundle that proves itself.

python -m export --model=runs/demo --output=artifacts/demo
python -m export --model=runs/demo --output=artifacts/demo --formats=web
python -m export.verify artifacts/demo
python -m export.latency artifacts/demo
"""

from absl import flags


def main(argv):
    """Reads the flags, exports and prints the closing table."""
    del argv
    from .bundle import export
    from .device import closing_table

    manifest = export(**{name: flags.FLAGS[name].value for name in _FLAGS})
    print(
        f"\n{closing_table(manifest)}\n\nin {flags.FLAGS.output}, described by manifest.json"
    )


_FLAGS = (
    "model",
    "weights",
    "image_size",
    "output",
    "formats",
    "dataset",
    "data_dir",
    "images",
    "calibration",
    "seed",
    "share_images",
    "debug_quantization",
)


if __name__ == "__main__":
    from keras_resnet.support import define_model_flags, run_command

    define_model_flags()
    flags.DEFINE_string("output", "artifacts/resnet20-digits", "Folder to write.")
    flags.DEFINE_list(
        "formats",
        None,
        "Artifacts to write: saved_model, float32, float16, dynamic, int8 if not given; "
        "also int8_io, float_io, int16x8, onnx, openvino, openvino_int8, web.",
    )
    flags.DEFINE_string(
        "dataset", None, "digits, folder:PATH or a TFDS name; the model's own."
    )
    flags.DEFINE_string(
        "data_dir", None, "Folder of prepared TFDS sets; TFDS's own if not given."
    )
    flags.DEFINE_integer("images", 2000, "Held-out images to check on, at most.", 1)
    flags.DEFINE_string(
        "calibration",
        None,
        "What int8 is calibrated on: folder:PATH, with images of any class, or the "
        "training images of another data set; if not given, those of the data set.",
    )
    flags.DEFINE_integer("seed", 0, "Of the choice of images for calibration.", 0)
    flags.DEFINE_bool(
        "share_images",
        False,
        "Put held-out images into check.npz, though their licence is not known.",
    )
    flags.DEFINE_bool(
        "debug_quantization",
        False,
        "Show layer by layer where int8 departs from float.",
    )
    run_command(main)
