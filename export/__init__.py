"""Export of trained networks as artifacts for servers, browsers and devices.

    python -m export --model=runs/demo --output=artifacts/demo

options.py             dataclass with the options of an export
bundle.py              the function `export`, which writes a bundle
artifacts.py           table of artifacts with the functions that write and check them
making.py              writing, checking and timing of artifacts
reference.py           test images, the Keras model's logits, and the calibration set
formats/               functions that write artifacts, by file format
quantization/          changes to a network that reduce its accuracy loss in int8
device/                tools that need only LiteRT and NumPy
verify.py, latency.py  commands that check and measure a bundle on a device

The wheel installs this folder as the package `keras_resnet_export` and the command
`keras-resnet-export`. For that reason, its modules use relative imports.
"""
