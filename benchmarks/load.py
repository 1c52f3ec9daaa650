"""Loading ResNet-152's weights, beside keras.applications and timm.

python -m benchmarks.load --torch_python=/path/to/python/with/timm

Every side is a process of its own that has imported what it needs before the
clock starts; it builds the net, loads the file and gives the time and the most
memory that the process ever held. Ours reads safetensors with torchvision's
names, as timm does; keras.applications its own h5. Random weights of the same
shapes: how long a load takes does not depend on their values.
"""

import os
import statistics
import sys
import tempfile

from benchmarks.side_by_side import ask_in_turn, ratios, run, write_results

_SIDE = """
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
SIDES = {
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


def _write_files(folder):
    """ResNet-152 in both formats, as published files are."""
    import h5py
    import keras

    import keras_resnet
    from keras_resnet.weights import save_state_dict

    model = keras_resnet.ResNet152(stride_on="3x3")
    save_state_dict(model, f"{folder}/net.safetensors")
    theirs = keras.applications.ResNet152(weights=None)
    with h5py.File(f"{folder}/net.h5", "w") as file:
        layers = [layer for layer in theirs.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{w.name}:0" for w in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value


def main(torch_python, rounds):
    """Measures all sides in turn and writes `results/load.csv`."""
    with tempfile.TemporaryDirectory() as folder:
        _write_files(folder)
        sides = {}
        for name, (imports, load) in SIDES.items():
            python = torch_python if name == "timm" else sys.executable
            code = _SIDE.format(imports=imports, load=load.format(folder=folder))
            sides[name] = python, code
        columns = ask_in_turn(sides, rounds)
    rows = []
    for name, (seconds, peak, added) in columns.items():
        row = {
            "side": name,
            "seconds": round(statistics.median_high(seconds), 2),
            **ratios(seconds, columns["ours"][0], "seconds/ours"),
            "peak_mib": round(max(peak)),
            "peak_over_imports_mib": round(max(added)),
            "added/ours": ratios(added, columns["ours"][2])["peer/ours"],
            "rounds": rounds,
        }
        rows.append(row)
    write_results("load", rows)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run(
        main,
        torch_python=(sys.executable, "Python that has timm."),
        rounds=(5, "Loads of each side."),
    )
