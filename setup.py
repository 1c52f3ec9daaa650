"""Metadata of the package. pyproject.toml configures the development tools."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "keras_resnet/__init__.py").read_text()
)[1]
X86_MARKER = "(sys_platform == 'linux' or sys_platform == 'win32') and (platform_machine == 'x86_64' or platform_machine == 'AMD64')"
NOT_X86_MARKER = "(sys_platform != 'linux' and sys_platform != 'win32') or (platform_machine != 'x86_64' and platform_machine != 'AMD64')"

DATASETS = [
    "tensorflow-datasets>=4.9.10",
    # TFDS 4.9.10 imports importlib_resources but does not declare this dependency.
    "importlib_resources",
]

ONNX = ["onnx", "onnxruntime"]
# Older versions of NNCF than 3.1 do not support a current NumPy.
OPENVINO = ["openvino>=2026.1", "nncf>=3.1"]
MEDIAPIPE = ["mediapipe>=1.2"]

setup(
    name="keras-resnet-zoo",
    version=VERSION,
    description="ResNets in Keras 3: build, train, verify and export to the edge",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=[
        re.sub("^export", "keras_resnet_export", package)
        for package in find_packages(include=["keras_resnet*", "export*"])
    ],
    # The folder export is installed as keras_resnet_export, because other packages may also
    # have the common name "export".
    package_dir={"keras_resnet_export": "export"},
    # Packages read their stubs (*.pyi) at run time to import public names at first use.
    package_data={
        "": ["*.pyi"],
        "keras_resnet": ["py.typed"],
        "keras_resnet.weights": ["imagenet_classes.txt", "trained/*/*"],
        "keras_resnet_export.formats": ["web/*"],
    },
    install_requires=[
        "absl-py",
        "ai-edge-litert>=2.1",
        "flatbuffers",
        "h5py",
        "keras>=3.15",
        "matplotlib",
        "numpy",
        "rich",
        "safetensors",
        "scikit-learn",
    ],
    extras_require={
        # TensorFlow is only in extras, because tensorflow-cpu and tensorflow must not be
        # installed in the same environment.
        "cpu": [
            f"tensorflow-cpu>=2.21; {X86_MARKER}",
            f"tensorflow>=2.21; {NOT_X86_MARKER}",
        ],
        "gpu": ["tensorflow[and-cuda]>=2.21"],
        "datasets": DATASETS,
        "tensorboard": ["tensorboard"],
        # Runtimes for exported artifacts.
        "mediapipe": MEDIAPIPE,
        "onnx": ONNX,
        "openvino": OPENVINO,
        # PyTorch is required to read .pth and .th files.
        "torch": ["torch"],
        "dev": [
            *DATASETS,
            *MEDIAPIPE,
            *ONNX,
            *OPENVINO,
            "hypothesis",
            "ipykernel",
            "jax",
            "mypy",
            "nbclient",
            "nbformat",
            "pillow",
            "pre-commit",
            "pytest",
            "pytest-cov",
            "pytest-xdist",
            "ruff",
            "selenium",
            "setuptools>=77",
            "twine",
            "zizmor",
        ],
        "benchmarks": ["keras-hub", "litert-quantizer"],
    },
    entry_points={
        "console_scripts": [
            "keras-resnet-train = keras_resnet.support.program:train",
            "keras-resnet-evaluate = keras_resnet.support.program:evaluate",
            "keras-resnet-predict = keras_resnet.support.program:predict",
            "keras-resnet-convert = keras_resnet.support.program:convert",
            "keras-resnet-runs = keras_resnet.support.program:runs",
            "keras-resnet-export = keras_resnet_export.console:export",
            "keras-resnet-verify = keras_resnet_export.verify:main",
            "keras-resnet-latency = keras_resnet_export.latency:main",
        ]
    },
    # The default folder "build" of setuptools clashes with the file BUILD on macOS and
    # Windows, whose file systems ignore the case.
    options={"build": {"build_base": "build_wheel"}},
)
