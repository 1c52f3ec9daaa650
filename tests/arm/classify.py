"""Classifies images with every `.tflite` file of a bundle, using only LiteRT and NumPy.

Usage: classify.py BUNDLE IMAGES.npy PROBABILITIES.npz

The output has an array of probabilities for each file. For the int8 file, the array
"int8 reference" has the probabilities that LiteRT's reference kernels compute.
"""

import pathlib
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

bundle, images_path, output_path = sys.argv[1:]
images = np.load(images_path)


def classify(path, kernels):
    interpreter = Interpreter(
        str(path), num_threads=2, experimental_op_resolver_type=kernels
    )
    run_signature = interpreter.get_signature_runner("serving_default")
    return np.concatenate(
        [run_signature(image=i[None])["probabilities"] for i in images]
    )


probabilities_by_name = {}
for path in pathlib.Path(bundle).glob("*.tflite"):
    probabilities_by_name[path.stem] = classify(path, OpResolverType.AUTO)
    if path.stem == "int8":
        probabilities_by_name["int8 reference"] = classify(
            path, OpResolverType.BUILTIN_REF
        )
np.savez(output_path, **probabilities_by_name)
