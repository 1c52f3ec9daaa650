"""A folder with a page that classifies pictures in a browser, by LiteRT.js.

index.html style.css main.js worker.js     the page
litert/                                    LiteRT.js, of which a browser loads one build
model.json float32.tflite ...              the network

Any server of static files will do, such as `python -m http.server`; nothing in the
folder asks for another address.
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
from keras_resnet.support import InputError, write_file

TEMPLATE = pathlib.Path(__file__).parent / "web"

# The page takes the first that is there of each: one that is small and quick, which
# it opens with, and one that is nearest to the trained network. In Chromium (one
# thread, x86, ResNet-18) int8 is a quarter of float32's size and takes a third of its
# time; float16 is half of its size and takes as long.
QUICK = ("int8", "dynamic")
EXACT = ("float16", "float32")
WEB_MODELS = QUICK + EXACT

TIMEOUT = 600  # Seconds, of one call of npm.

# LiteRT.js' builds: with relaxed SIMD, the same with threads, and for browsers that
# have neither.
BUILDS = [f"litert_wasm_{kind}internal" for kind in ("", "threaded_", "compat_")]

_QUIET = ("npm_config_audit", "npm_config_fund", "npm_config_update_notifier")

_NEEDS = (
    "web needs Node.js 18 or later with npm, and its registry for the packages "
    "@litertjs/core and esbuild"
)


def write_web(
    path: str | os.PathLike[str], classifier: Classifier, files: Mapping[str, str]
) -> None:
    """Writes a folder with a page that runs a network in a browser.

    The page resizes and crops as `classifier.preprocessing` does, to the pixel but
    for rounding.

    Args:
        path: Folder to write.
        classifier: The classifier.
        files: Paths of `.tflite` files that take uint8, by names of `WEB_MODELS`. Of
            `QUICK` and of `EXACT` the first that is there is copied.

    Raises:
        InputError: There is no such file among them, or the page cannot be built.
        OSError: The folder cannot be written.
    """
    present = [[name for name in names if name in files] for names in (QUICK, EXACT)]
    chosen = [names[0] for names in present if names]
    if not chosen:
        raise InputError(
            f"web needs at least one of {', '.join(WEB_MODELS)}. "
            f"Received: {', '.join(files) or 'none'}"
        )
    path = pathlib.Path(path)
    with tempfile.TemporaryDirectory() as work:
        _build(pathlib.Path(work), path)
    for name in chosen:
        shutil.copyfile(files[name], path / f"{name}.tflite")
    write_file(path / "model.json", _describe(classifier, path, chosen))


def _describe(classifier: Classifier, path: pathlib.Path, models: list[str]) -> str:
    """Returns what the page knows of its network, in JSON."""
    preprocessing = classifier.preprocessing
    sizes = {name: os.path.getsize(path / f"{name}.tflite") for name in models}
    description = {
        "name": classifier.name,
        "classes": list(classifier.classes),
        **dataclasses.asdict(preprocessing),
        # Python's rounding, which JavaScript's is not.
        "cover": [round(side / preprocessing.crop) for side in preprocessing.shape[:2]],
        "models": [
            {"name": name, "file": f"{name}.tflite", "bytes": size}
            for name, size in sizes.items()
        ],
    }
    return json.dumps(description, indent=1, ensure_ascii=False)


def _build(work: pathlib.Path, path: pathlib.Path) -> None:
    """Bundles the page with LiteRT.js, in an empty folder: the template may be read-only.

    The folder at `path` is created once all packages are there.
    """
    for file in TEMPLATE.iterdir():
        if file.is_file():
            shutil.copyfile(file, work / file.name)
    # Also where NODE_ENV=production or the user's settings leave esbuild out.
    settings = ["--include=dev", "--include=optional", "--ignore-scripts"]
    settings += ["--prefer-offline", "--fetch-retries=1", "--fetch-timeout=60000"]
    _npm(work, "ci", *settings)
    path.mkdir(parents=True)
    for name in ("index.html", "style.css"):
        shutil.copyfile(work / name, path / name)
    _npm(work, "run", "page", "--", f"--outdir={path.resolve()}")
    litert, wasm = path / "litert", work / "node_modules/@litertjs/core/wasm"
    scripts = [f"{wasm / build}.js" for build in BUILDS]
    _npm(work, "run", "runtime", "--", *scripts, f"--outdir={litert.resolve()}")
    for build in BUILDS:
        # Packed, it is a third; few servers do that themselves. Not named .gz, which
        # some servers tell the browser to unpack.
        packed = gzip.compress((wasm / f"{build}.wasm").read_bytes(), 9, mtime=0)
        write_file(litert / f"{build}.wasm.gzip", packed)


def _npm(work: pathlib.Path, *arguments: str) -> None:
    """Runs npm, silent unless it fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"{_NEEDS}. Received: no program npm on the PATH")
    try:
        result = subprocess.run(
            [npm, *arguments],
            cwd=work,
            env=os.environ | dict.fromkeys(_QUIET, "false"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise InputError(f"{_NEEDS}. Received: {npm}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{_NEEDS}. Received: no end of npm {arguments[0]} within {TIMEOUT} s"
        ) from None
    if result.returncode:
        raise InputError(f"{_NEEDS}. Received: {_first_error(result.stderr)}")


def _first_error(output: str) -> str:
    """Returns the line of npm's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if "npm warn" not in line]
    errors = [line.removeprefix("npm error ") for line in lines if line]
    facts = ("code ", "errno ", "syscall ", "path ")
    return next((e for e in errors if not e.startswith(facts)), "no word from npm")
