"""From a trained network to artifacts that servers and devices run.

    python -m export --model=runs/demo --output=artifacts/demo

options: What can be chosen, as one typed value.
bundle: Writes the whole folder, or nothing.
artifacts: The table of artifacts: how each is written, run and judged.
making: Writes one artifact and judges it; times all of them.
proof: The held-out images, the Keras model's answers, and int8's calibration set.
formats/: The file formats.
quantization/: Networks that lose less in int8.
device/: What runs with LiteRT and NumPy alone.
verify, latency: Commands that check and measure a bundle on a device.

From an installed wheel the same folder is the package `keras_resnet_export`,
and the command `keras-resnet-export`. Modules in it import each other
relatively for that reason.
"""
