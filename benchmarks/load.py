"""Loading ResNet-152's weights, beside keras.applications and timm.

python -m benchmarks.load --torch_python=/path/to/python/with/timm

Every side is a process of its own that has imported what it needs before the
clock starts; it builds the net, loads the file and gives the time and the most
memory that the process ever held. Ours reads safetensors with torchvision's
names, as timm does; keras.applications its own h5. Random weights of the same
shapes: how long a load takes does not depend on their values.
"""

import json
import os
import subprocess
import sys
import tempfile

from absl import flags

from benchmarks.side_by_side import ratios, write_results

_MEMORY = """
status = open("/proc/self/status").read().splitlines()
held = dict(line.split()[:2] for line in status if line.startswith("Vm"))
"""
_SIDE = (
    """
import json, sys, time
{imports}
"""
    + _MEMORY
    + """
before = int(held["VmRSS:"])
start = time.perf_counter()
{load}
seconds = time.perf_counter() - start
"""
    + _MEMORY
    + """
peak = int(held["VmHWM:"])
print(json.dumps([seconds, peak / 1024, (peak - before) / 1024]))
"""
)
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
    from keras_resnet.weights.saving import save_state_dict

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


def main(argv):
    """Measures all sides in turn and writes `results/load.csv`."""
    del argv
    values = flags.FLAGS
    with tempfile.TemporaryDirectory() as folder:
        _write_files(folder)
        found = {name: [] for name in SIDES}
        for _ in range(values.rounds):
            for name, (imports, load) in SIDES.items():
                python = values.torch_python if name == "timm" else sys.executable
                code = _SIDE.format(imports=imports, load=load.format(folder=folder))
                answer = subprocess.run(
                    [python, "-c", code], check=True, capture_output=True, text=True
                )
                found[name].append(json.loads(answer.stdout.splitlines()[-1]))
    rows = []
    for name, sides in found.items():
        seconds, peak, added = zip(*sides, strict=True)
        ours = list(zip(*found["ours"], strict=True))
        time, lowest, highest = ratios(seconds, ours[0])
        rows.append(
            {
                "side": name,
                "seconds": round(sorted(seconds)[len(seconds) // 2], 2),
                "seconds/ours": time,
                "lowest": lowest,
                "highest": highest,
                "peak_mib": round(max(peak)),
                "peak_over_imports_mib": round(max(added)),
                "added/ours": ratios(added, ours[2])[0],
                "rounds": len(seconds),
            }
        )
    write_results("load", rows)


if __name__ == "__main__":
    from keras_resnet.support import program

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    flags.DEFINE_string("torch_python", sys.executable, "Python that has timm.")
    flags.DEFINE_integer("rounds", 5, "Loads of each side.", 1)
    program.run_command(main)
