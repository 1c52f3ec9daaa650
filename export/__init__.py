"""From a trained network to artifacts that servers and devices run.

    python -m export --model=runs/demo --output=artifacts/demo

From an installed wheel the same folder is the package `keras_resnet_export`,
and the program `keras-resnet-export`; modules in it import each other
relatively for that reason.
"""
