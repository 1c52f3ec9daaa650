"""A web page that classifies images in the browser with LiteRT.js.

index.html style.css main.js worker.js     the page
litert/                                    builds of LiteRT.js; a browser loads one
model.json int8.tflite ...                 the network

These files are in the exported folder. Any server of static files can serve the folder,
for example `python -m http.server`. The page requests no file from outside the folder.
"""

import dataclasses
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping

from keras_resnet.evaluation import Classifier
from keras_resnet.support import InputError, StrPath, write_file

TEMPLATE = pathlib.Path(__file__).parent / "web"

# The page offers the first available format of FAST and the first of EXACT, and loads
# the FAST format first. EXACT formats are closer to the trained network. In Chromium
# (one thread, x86, ResNet-18), int8 has a quarter of the size of float32 and takes a
# third of the time. float16 has half of the size and takes as long as float32.
FAST = ("int8", "dynamic")
EXACT = ("float16", "float32")
WEB_MODELS = FAST + EXACT

TIMEOUT = 600  # Time limit of one npm command, in seconds.

# LiteRT.js with relaxed SIMD, with relaxed SIMD and threads, and for older browsers.
BUILDS = [f"litert_wasm_{kind}internal" for kind in ("", "threaded_", "compat_")]

# npm settings to disable: the security audit, and notices of funding and updates.
_NPM_NOTICES = ("npm_config_audit", "npm_config_fund", "npm_config_update_notifier")

_NPM_ADVICE = (
    "The format web needs Node.js 18 or later with npm, and access to the npm registry "
    "for the packages @litertjs/core and esbuild"
)


def write_web(path: StrPath, classifier: Classifier, files: Mapping[str, str]) -> None:
    """Writes a web page that runs a network in the browser.

    The page resizes and crops images like `classifier.preprocessing`. Pixel values
    may differ by 1 due to rounding. `files` maps names from `WEB_MODELS` to `.tflite`
    files with uint8 input. The first available file of `FAST` and of `EXACT` is copied.

    Raises:
        InputError: If `files` has no name from `WEB_MODELS` or the build fails.
        OSError: If the folder cannot be written.
    """
    available = [[name for name in names if name in files] for names in (FAST, EXACT)]
    model_names = [names[0] for names in available if names]
    if not model_names:
        raise InputError(
            f"The format web needs one or more of the formats {', '.join(WEB_MODELS)}. "
            f"Received: {', '.join(files) or 'none'}"
        )
    path = pathlib.Path(path).resolve()
    # In the bundle, so that the next export removes what a killed export left.
    with tempfile.TemporaryDirectory(dir=path.parent) as work_dir:
        _build(pathlib.Path(work_dir), path)
    for name in model_names:
        shutil.copyfile(files[name], path / f"{name}.tflite")
    write_file(path / "model.json", _to_json(classifier, path, model_names))


def _to_json(classifier: Classifier, path: pathlib.Path, model_names: list[str]) -> str:
    """Returns the content of model.json, the page's description of the network."""
    preprocessing = classifier.preprocessing
    sizes = {name: os.path.getsize(path / f"{name}.tflite") for name in model_names}
    description = {
        "name": classifier.name,
        "classes": list(classifier.classes),
        **dataclasses.asdict(preprocessing),
        # Size before the crop. It is stored because JavaScript rounds differently.
        "cover": [round(side / preprocessing.crop) for side in preprocessing.shape[:2]],
        "models": [
            {"name": name, "file": f"{name}.tflite", "bytes": size}
            for name, size in sizes.items()
        ],
    }
    return json.dumps(description, indent=1, ensure_ascii=False)


def _build(work_dir: pathlib.Path, path: pathlib.Path) -> None:
    """Bundles the page with LiteRT.js and writes it to `path`.

    The build runs in the empty folder `work_dir`, since the template may be read-only.
    A failed installation of npm packages does not create `path`.
    """
    for file in TEMPLATE.iterdir():
        if file.is_file():
            shutil.copyfile(file, work_dir / file.name)
    # The options "include" install esbuild even if NODE_ENV or npm settings exclude it.
    options = ["--include=dev", "--include=optional", "--ignore-scripts"]
    options += ["--prefer-offline", "--fetch-retries=1", "--fetch-timeout=60000"]
    _run_npm(work_dir, "ci", *options)
    path.mkdir(parents=True)
    for name in ("index.html", "style.css"):
        shutil.copyfile(work_dir / name, path / name)
    _run_npm(work_dir, "run", "page", "--", f"--outdir={path.resolve()}")
    litert, wasm = path / "litert", work_dir / "node_modules/@litertjs/core/wasm"
    scripts = [f"{wasm / build}.js" for build in BUILDS]
    _run_npm(work_dir, "run", "runtime", "--", *scripts, f"--outdir={litert.resolve()}")
    for build in BUILDS:
        # gzip reduces the size to a third, and few servers compress files themselves.
        # Some servers make browsers decompress .gz files, so the suffix is not .gz.
        compressed = gzip.compress((wasm / f"{build}.wasm").read_bytes(), 9, mtime=0)
        write_file(litert / f"{build}.wasm.gzip", compressed)


def _run_npm(work_dir: pathlib.Path, *arguments: str) -> None:
    """Runs npm in `work_dir`, and prints nothing. Raises InputError if npm fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"The command npm is not on the PATH. {_NPM_ADVICE}")
    try:
        process = subprocess.run(
            [npm, *arguments],
            cwd=work_dir,
            env=os.environ | dict.fromkeys(_NPM_NOTICES, "false"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise InputError(f"Cannot run {npm}: {error.strerror}. {_NPM_ADVICE}") from None
    except subprocess.TimeoutExpired:
        raise InputError(
            f"npm {arguments[0]} did not end within {TIMEOUT} s. {_NPM_ADVICE}"
        ) from None
    if process.returncode:
        raise InputError(f"npm failed: {_find_error(process.stderr)}. {_NPM_ADVICE}")


def _find_error(output: str) -> str:
    """Returns the first line of npm's output that describes the error."""
    lines = [line.strip() for line in output.splitlines() if "npm warn" not in line]
    messages = [line.removeprefix("npm error ") for line in lines if line]
    prefixes = ("code ", "errno ", "syscall ", "path ")  # Lines without a message.
    return next((m for m in messages if not m.startswith(prefixes)), "no npm message")
