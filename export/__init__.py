"""From a trained network to artifacts that servers and devices run.

    python -m export --model=runs/demo --output=artifacts/demo

options.py             what can be chosen, as one typed value
bundle.py              writes the whole folder, or nothing
artifacts.py           the table of artifacts: how each is written, run and judged
making.py              writes one artifact and judges it; times all of them
proof.py               the held-out images, the Keras model's answers, and int8's
                       calibration set
formats/               the file formats
quantization/          networks that lose less in int8
device/                what runs with LiteRT and NumPy alone
verify.py, latency.py  commands that check and measure a bundle on a device

From an installed wheel the same folder is the package `keras_resnet_export`,
and the command `keras-resnet-export`. Modules in it import each other
relatively for that reason.
"""
