"""Exports a trained network as a bundle that proves itself.

python -m export --model=runs/demo --output=artifacts/demo
"""

from absl import flags


def main(argv):
    """Reads the flags, exports and prints the closing table."""
    del argv
    from .bundle import export, table

    manifest = export(**{name: flags.FLAGS[name].value for name in _FLAGS})
    print(f"\n{table(manifest)}\n\nin {flags.FLAGS.output}, described by manifest.json")


_FLAGS = (
    "model",
    "weights",
    "image_size",
    "output",
    "formats",
    "dataset",
    "data_dir",
    "images",
    "seed",
)

if __name__ == "__main__":
    from keras_resnet import programs

    programs.define_model_flags()
    flags.DEFINE_string("output", "artifacts/resnet20-digits", "Folder to write.")
    flags.DEFINE_list(
        "formats",
        "saved_model,float32,float16,dynamic,int8",
        "Artifacts to write.",
    )
    flags.DEFINE_string(
        "dataset", None, "digits, folder:PATH or a TFDS name; the model's own."
    )
    flags.DEFINE_string(
        "data_dir", None, "Folder of prepared TFDS sets; TFDS's own if not given."
    )
    flags.DEFINE_integer("images", 2000, "Held-out images to check on, at most.", 1)
    flags.DEFINE_integer("seed", 0, "Of the choice of images for calibration.", 0)
    programs.run(main)
