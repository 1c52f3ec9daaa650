"""Time to load the weights of ResNet-152, compared with keras.applications and timm.

python -m benchmarks.load --torch_python=/path/to/python/with/timm

Each library has its own process. After the imports, the process builds the network,
loads the weights, and reports the time and its peak memory. This package and timm
read a safetensors file with torchvision's names. keras.applications reads its own h5
format. The weights are random, since their values do not affect the time.
"""

import os
import statistics
import sys
import tempfile

from benchmarks.side_by_side import run, run_scripts, summarise_ratios, write_results

_SCRIPT = """
import json, sys, time
{imports}

def mebibytes(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) / 1024

before = mebibytes("VmRSS")
start = time.perf_counter()
{load}
seconds = time.perf_counter() - start
peak = mebibytes("VmHWM")
print(json.dumps([seconds, peak, peak - before]))
"""
# Imports and code that loads the network, by library. Only the loading is measured.
LIBRARIES = {
    "ours": (
        "import keras; from keras_resnet import ResNet152; import safetensors",
        "model = ResNet152(weights='{folder}/net.safetensors')",
    ),
    "keras.applications": (
        "import keras; import h5py",
        "model = keras.applications.ResNet152(weights='{folder}/net.h5')",
    ),
    "timm": (
        "import timm, safetensors.torch",
        "model = timm.create_model('resnet152', checkpoint_path="
        "'{folder}/net.safetensors')",
    ),
}


def _write_weights(folder):
    """Writes ResNet-152 as safetensors and in the h5 format of keras.applications."""
    import h5py
    import keras
    from keras.src.legacy.saving import legacy_h5_format

    import keras_resnet
    from keras_resnet.weights import save_state_dict

    model = keras_resnet.ResNet152(stride_on="3x3")
    save_state_dict(model, f"{folder}/net.safetensors")
    keras_model = keras.applications.ResNet152(weights=None)
    with h5py.File(f"{folder}/net.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, keras_model)


def main(torch_python, num_rounds):
    with tempfile.TemporaryDirectory() as folder:
        _write_weights(folder)
        scripts = {}
        for name, (imports, load_code) in LIBRARIES.items():
            python = torch_python if name == "timm" else sys.executable
            code = _SCRIPT.format(imports=imports, load=load_code.format(folder=folder))
            scripts[name] = python, code
        columns = run_scripts(scripts, num_rounds)
    rows = []
    for name, (seconds, peaks, increases) in columns.items():
        row = {
            "side": name,
            "seconds": round(statistics.median_high(seconds), 2),
            **summarise_ratios(seconds, columns["ours"][0], "seconds/ours"),
            "peak_mib": round(max(peaks)),
            "peak_over_imports_mib": round(max(increases)),
            "added/ours": summarise_ratios(increases, columns["ours"][2])["peer/ours"],
            "rounds": num_rounds,
        }
        rows.append(row)
    write_results("load", rows)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run(
        main,
        torch_python=(sys.executable, "Python interpreter with timm."),
        rounds=(5, "Number of times that each library loads the network."),
    )
