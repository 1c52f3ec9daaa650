"""Runs every `.tflite` file of a bundle, with LiteRT and NumPy alone.

Usage: classify.py BUNDLE IMAGES.npy ANSWERS.npz
"""

import pathlib
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

bundle, images, answers = sys.argv[1:]
images = np.load(images)


def classify(path, kernels):
    interpreter = Interpreter(
        str(path), num_threads=2, experimental_op_resolver_type=kernels
    )
    serve = interpreter.get_signature_runner("serving_default")
    return np.concatenate([serve(image=i[None])["probabilities"] for i in images])


found = {}
for path in pathlib.Path(bundle).glob("*.tflite"):
    found[path.stem] = classify(path, OpResolverType.AUTO)
    if path.stem == "int8":
        found["int8 reference"] = classify(path, OpResolverType.BUILTIN_REF)
np.savez(answers, **found)
