"""The page for a browser, in headless Chromium."""

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time

import keras
import numpy as np
import pytest
from conftest import SHARED, write_artifacts
from PIL import Image

from export.formats import web
from keras_resnet.data import sources
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import Classifier, load_classifier
from keras_resnet.spec import Provenance
from keras_resnet.support.errors import InputError

pytestmark = pytest.mark.clients

# Seconds, of one step of the browser. Nothing here waits for ever.
PATIENCE = 60
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
)
ANSWERS = """
const seen = document.querySelector("#seen canvas");
const pixels = seen.getContext("2d").getImageData(0, 0, seen.width, seen.height).data;
return {
    answers: Array.from(document.querySelectorAll("#results li"), (row) => ({
        place: Number(row.dataset.class),
        label: row.children[0].textContent,
        shown: row.children[1].textContent,
        probability: Number(row.dataset.probability),
    })),
    pixels: Array.from(pixels),
    size: [seen.height, seen.width, 4],
    milliseconds: Number(document.getElementById("time").dataset.milliseconds),
    time: document.getElementById("time").textContent,
    said: document.getElementById("said").textContent,
    alt: document.getElementById("picture").alt,
};
"""
MESSAGE = "document.getElementById('message').textContent"


class Handler(http.server.SimpleHTTPRequestHandler):
    headers_too = ()
    delays: dict[str, float]

    def do_GET(self):
        time.sleep(self.delays.get(self.path, 0))
        super().do_GET()

    def log_message(self, *arguments):
        pass

    def end_headers(self):
        for header in self.headers_too:
            self.send_header(*header)
        super().end_headers()


@contextlib.contextmanager
def serve(folder, *headers, delays=()):
    """As `python -m http.server`; gives the address.

    Args:
        folder: of the files.
        *headers: (name, value) of each that every answer carries besides.
        delays: from a file's path, as "/model.json", to the seconds it comes late.
    """
    kind = type("Handler", (Handler,), {"headers_too": headers, "delays": dict(delays)})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(kind, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Page:
    """A phone's browser."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address):
        self.driver.get(address)
        self.wait("document.documentElement.dataset.ready")

    def wait(self, condition, seconds=PATIENCE):
        """Waits until an expression is true, and returns it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.driver.execute_script(f"return {condition}"):
                return found
            time.sleep(0.05)
        text = self.driver.execute_script("return document.body.innerText")
        raise TimeoutError(f"{condition}: {text} {self.driver.get_log('browser')}")

    def give(self, path):
        """Chooses a file; returns what the page answers."""
        self.forget()
        self.driver.find_element("id", "file").send_keys(str(path))
        return self.answer()

    def forget(self):
        self.driver.execute_script(
            "delete document.getElementById('time').dataset.milliseconds"
        )

    def answer(self):
        self.wait("document.getElementById('time').dataset.milliseconds")
        found = self.driver.execute_script(ANSWERS)
        pixels = np.array(found["pixels"], np.uint8).reshape(found["size"])
        return found | {"pixels": pixels[..., :3]}

    def choose(self, *places):
        """Switches to networks, to one at once after the other."""
        self.driver.execute_script(
            """const list = document.getElementById("model");
            for (const place of arguments) {
                list.selectedIndex = place;
                list.dispatchEvent(new Event("change"));
            }""",
            *places,
        )

    def allow_camera(self, setting):
        self.driver.execute_cdp_cmd(
            "Browser.setPermission",
            {"permission": {"name": "camera"}, "setting": setting},
        )


def need(*programs):
    """Skips the test where a program is missing."""
    for program in programs:
        if not shutil.which(program):
            pytest.skip(
                f"needs the program {program} (Debian: chromium chromium-driver npm)"
            )


@contextlib.contextmanager
def open_browser(*flags):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium, which drives the browser"
    )
    need("chromium", "chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        )
        for flag in (*FLAGS, f"--user-data-dir={profile}", *flags):
            options.add_argument(flag)
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        stack.callback(service.stop)  # Also where the browser does not start.
        # Selenium waits for ever for chromedriver's answers, but for this.
        unset = socket.getdefaulttimeout()
        socket.setdefaulttimeout(1.5 * PATIENCE)
        try:
            driver = webdriver.Chrome(options, service)
        finally:
            socket.setdefaulttimeout(unset)
        stack.callback(driver.quit)
        driver.set_page_load_timeout(PATIENCE)
        driver.set_script_timeout(PATIENCE)
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
        )
        yield Page(driver)


@pytest.fixture(scope="module")
def page():
    with open_browser() as page:
        yield page


def write_page(path, classifier, files):
    """Writes it, or skips the test where npm or its registry is out of reach."""
    try:
        web.write_web(path, classifier, files)
    except InputError as error:
        if re.search(
            r"no program npm|request to \S+ failed|timeout|no end of npm ci", str(error)
        ):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def converted(trained, tmp_path_factory):
    """(classifier, files) of the net that has learnt the digits, without a page."""
    folder = tmp_path_factory.mktemp("converted")
    classifier = load_classifier(str(trained))
    calibration = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    names = ("float32", "int8")
    return classifier, write_artifacts(classifier, folder, names, calibration)


@pytest.fixture(scope="module")
def digits(converted, tmp_path_factory):
    """(classifier, folder with the page) of the net that has learnt the digits."""
    classifier, files = converted
    folder = tmp_path_factory.mktemp("web") / "web"
    with pytest.MonkeyPatch.context() as patch:
        # As many servers set it: npm then leaves esbuild out, unless it is told.
        patch.setenv("NODE_ENV", "production")
        write_page(folder, classifier, files)
    return classifier, folder


@pytest.fixture(scope="module")
def colours(digits, tmp_path_factory):
    """(classifier, folder) of a net that tells colours apart, as photographs go.

    Its head is enlarged, so that the answers of its random weights differ.
    """
    keras.utils.set_random_seed(0)
    shape = (56, 40, 3)
    layers = keras.layers
    image = layers.Input(shape, dtype="uint8", name="image")
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(8, 3, activation="relu")(x)
    x = layers.Flatten()(layers.AveragePooling2D(8, name="avg_pool")(x))
    head = layers.Dense(
        1000, "softmax", name="predictions", kernel_initializer="he_normal"
    )
    classes = ["Wellensittich, grün\n(日本語)", "W" * 80, "a<b>&amp;", "naïve  "]
    classes += [str(i) for i in range(4, 1000)]
    classifier = Classifier(
        "colours",
        keras.Model(image, head(x)),
        tuple(classes),
        Preprocessing(*shape, crop=0.875, interpolation="bilinear"),
        Provenance("net"),
    )
    folder = tmp_path_factory.mktemp("colours")
    files = write_artifacts(classifier, folder, ("float32",))
    with pytest.MonkeyPatch.context() as patch:
        # The page is the same one: a second build takes seconds.
        patch.setattr(
            web, "_build", lambda work, path: shutil.copytree(digits[1], path)
        )
        web.write_web(folder / "web", classifier, files)
    return classifier, folder / "web"


def assert_answers(found, expected, classes, atol):
    """The page's five answers are Keras's probabilities, in their order."""
    best = np.argsort(-expected, kind="stable")[: len(found["answers"])]
    assert found["answers"][0]["place"] == best[0]
    assert len(found["answers"]) == min(5, len(classes))
    for answer in found["answers"]:
        assert answer["label"] == classes[answer["place"]]
        assert abs(answer["probability"] - expected[answer["place"]]) <= atol
        shown = float(answer["shown"].removesuffix(" %"))
        assert abs(shown - 100 * answer["probability"]) <= 0.51
    assert found["answers"][-1]["probability"] >= expected[best[-1]] - atol
    assert found["milliseconds"] >= 0
    assert re.fullmatch(r"(< 0\.1|\d+\.\d|\d+) ms", found["time"])


def test_digits(digits, page, tmp_path):
    """Top-1 and probabilities are those of Keras, in both precisions offered."""
    classifier, folder = digits
    split = sources.load_dataset("digits").test
    images = np.stack([split.images[i] for i in range(12)])
    expected = classifier.model.predict(images, verbose=0)
    assert len(set(expected.argmax(axis=1))) > 5
    with serve(folder) as address:
        page.open(address)
        options = page.driver.execute_script(
            "return Array.from(document.querySelectorAll('option'), (o) => o.text)"
        )
        assert [option.split(",")[0] for option in options] == ["int8", "float32"]
        for place, atol in ((1, 1e-5), (0, 0.25)):
            page.choose(place)
            page.wait("document.documentElement.dataset.ready")
            for image, probabilities in zip(images, expected, strict=True):
                keras.utils.save_img(tmp_path / "digit.png", image, scale=False)
                found = page.give(tmp_path / "digit.png")
                np.testing.assert_array_equal(found["pixels"], image.repeat(3, axis=-1))
                assert_answers(found, probabilities, classifier.classes, atol)
                assert found["said"].startswith(f"{found['answers'][0]['label']}, ")
                assert found["alt"] == "Your picture digit.png"


def draw(height, width, seed=0):
    """A picture with broad shapes and fine ones."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (7, 9, 3), np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), 2), float)
    return (image + random.normal(0, 20, image.shape)).clip(0, 255).astype(np.uint8)


def write_pictures(folder):
    """Pictures as phones and programs write them; from a name to its path."""
    tall, wide = Image.fromarray(draw(437, 301)), Image.fromarray(draw(120, 411))
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = {
        "photo.jpg": (tall, {"quality": 90}),
        "full.jpg": (wide, {"quality": 95, "subsampling": 0}),
        "turned.jpg": (tall, {"exif": turned}),
        "grey.jpg": (tall.convert("L"), {}),
        "small.png": (Image.fromarray(draw(31, 23)), {}),
        "exact.png": (Image.fromarray(draw(64, 46)), {}),
        "palette.png": (wide.convert("P"), {}),
        "lossless.webp": (wide, {"lossless": True}),
        "first.gif": (wide.convert("P"), {}),
        # More than one strip of rows.
        "large.png": (Image.fromarray(draw(1100, 700)), {}),
        "profile.png": (wide, {"icc_profile": wide_gamut()}),
    }
    for name, (image, options) in pictures.items():
        image.save(folder / name, **options)
    return [folder / name for name in pictures]


def wide_gamut():
    """A colour profile in which sRGB's numbers mean other colours."""
    from PIL import ImageCms

    profile = bytearray(
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    tags = int.from_bytes(profile[128:132], "big")
    entries = [profile[132 + 12 * i : 144 + 12 * i] for i in range(tags)]
    places = {bytes(e[:4]): 132 + 12 * i for i, e in enumerate(entries)}
    # The red and the green primary change places.
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_those_of_training(
    colours, digits, page, tmp_path, channels, interpolation
):
    """Every kind of file gives the pixels that Python reads, up to one level."""
    classifier, folder = colours
    if channels == 1:
        classifier, folder = digits
    settings = {
        "height": 56 if channels == 3 else 8,
        "width": 40 if channels == 3 else 8,
        "channels": channels,
        "crop": 0.875,
        "interpolation": interpolation,
    }
    expected = Preprocessing(**settings)
    site = tmp_path / "web"
    shutil.copytree(folder, site)
    description = json.loads((site / "model.json").read_text("utf-8"))
    cover = [round(settings[side] / 0.875) for side in ("height", "width")]
    if channels == 3 and interpolation == "bilinear":
        assert description["cover"] == cover
    description |= settings | {"cover": cover}
    (site / "model.json").write_text(json.dumps(description))
    with serve(site) as address:
        page.open(address)
        for path in write_pictures(tmp_path):
            found = page.give(path)
            read = expected.load(path)
            difference = np.abs(found["pixels"] - np.float32(read)).max()
            assert difference <= 1, path.name
            if channels == 3 and interpolation == "bilinear":
                probabilities = classifier.model.predict(
                    found["pixels"][None], verbose=0
                )[0]
                assert_answers(found, probabilities, classifier.classes, 1e-5)


def test_pasted_and_dropped(colours, page, tmp_path):
    classifier, folder = colours
    image = draw(64, 46)
    Image.fromarray(image).save(tmp_path / "picture.png")
    expected = classifier.preprocessing.load(tmp_path / "picture.png")
    content = list((tmp_path / "picture.png").read_bytes())
    with serve(folder) as address:
        page.open(address)
        for event in (
            "new ClipboardEvent('paste', {clipboardData: moved})",
            "new DragEvent('drop', {dataTransfer: moved, cancelable: true})",
        ):
            page.forget()
            page.driver.execute_script(
                f"""const moved = new DataTransfer();
                const content = new Uint8Array(arguments[0]);
                moved.items.add(new File([content], "a.png", {{type: "image/png"}}));
                document.dispatchEvent({event});""",
                content,
            )
            np.testing.assert_array_equal(page.answer()["pixels"], expected)
            page.driver.refresh()
            page.wait("document.documentElement.dataset.ready")


def test_files_that_are_no_pictures(digits, page, tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    Image.fromarray(draw(40, 40)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "damaged.png").write_bytes(whole[:30])
    with serve(digits[1]) as address:
        page.open(address)
        for name in ("notes.txt", "damaged.png"):
            page.driver.find_element("id", "file").send_keys(str(tmp_path / name))
            page.wait(f"{MESSAGE}.startsWith('{name} is not a picture')")
        page.give(tmp_path / "whole.png")
        assert page.wait("document.getElementById('message').hidden")


def test_camera(digits, page):
    """Its pictures are classified as they come, the time is a median."""
    classifier, folder = digits
    with serve(folder) as address:
        page.open(address)
        page.allow_camera("denied")
        page.driver.find_element("id", "camera").click()
        page.wait(f"{MESSAGE}.includes('may not use the camera')")
        page.allow_camera("granted")
        page.driver.refresh()
        page.wait("document.documentElement.dataset.ready")
        page.driver.find_element("id", "camera").click()
        seen = []
        for _ in range(3):
            page.forget()
            found = page.answer()
            seen.append(found["pixels"].tobytes())
            expected = classifier.model.predict(
                found["pixels"][None, ..., :1], verbose=0
            )
            assert_answers(found, expected[0], classifier.classes, 0.3)
        assert page.driver.find_element("id", "camera").text == "Stop camera"
        page.driver.find_element("id", "camera").click()
        page.wait("document.getElementById('video').srcObject === null")
        assert page.driver.find_element("id", "camera").text == "Camera"


def test_switched_twice_quickly(digits, page):
    """The network chosen last answers, though the one before it comes later."""
    classifier, folder = digits
    # Out of the browser's cache, nothing is slow.
    fresh = ("Cache-Control", "no-store")
    delays = {"/int8.tflite": 0.6, "/float32.tflite": 0.3}
    with serve(folder, fresh, delays=delays) as address:
        page.open(address)
        page.allow_camera("granted")
        page.driver.find_element("id", "camera").click()
        page.answer()
        page.choose(0, 1)
        ready = "document.documentElement.dataset.ready"
        assert page.wait(ready) == "float32"
        time.sleep(0.6)  # By now int8 would be there, too.
        page.forget()
        found = page.answer()
        assert page.wait(ready) == "float32"
        assert page.wait("document.getElementById('message').hidden")
        page.driver.find_element("id", "camera").click()
    pixels = found["pixels"][None, ..., :1]
    expected = classifier.model.predict(pixels, verbose=0)[0]
    assert_answers(found, expected, classifier.classes, 1e-5)


def test_threads_where_the_server_allows_them(colours, page, tmp_path):
    classifier, folder = colours
    Image.fromarray(draw(90, 70)).save(tmp_path / "picture.png")
    headers = (
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Embedder-Policy", "require-corp"),
    )
    with serve(folder, *headers) as address:
        page.open(address)
        cores = page.driver.execute_script("return navigator.hardwareConcurrency")
        text = page.driver.find_element("id", "threads").text
        assert text == f"{cores} thread{'s' * (cores > 1)}"
        found = page.give(tmp_path / "picture.png")
    expected = classifier.model.predict(found["pixels"][None], verbose=0)[0]
    assert_answers(found, expected, classifier.classes, 1e-5)


def test_missing_network(digits, page, tmp_path):
    site = tmp_path / "web"
    shutil.copytree(digits[1], site)
    (site / "int8.tflite").unlink()
    with serve(site) as address:
        page.driver.get(address)
        page.wait(f"{MESSAGE}.includes('int8.tflite: 404')")
        page.choose(1)
        page.wait("document.documentElement.dataset.ready === 'float32'")
        assert page.wait("document.getElementById('message').hidden")
        (site / "litert/litert_wasm_internal.wasm.gzip").write_bytes(b"no wasm")
        page.driver.get(address)
        page.wait(f"{MESSAGE}.startsWith('The network does not run here')")


def test_opened_as_a_file(digits, page):
    page.driver.get((digits[1] / "index.html").as_uri())
    page.wait(f"{MESSAGE}.includes('python -m http.server')")


def test_nothing_leaves_this_machine(colours, tmp_path):
    """By Chromium's own log of its network, workers and all."""
    Image.fromarray(draw(90, 70)).save(tmp_path / "picture.png")
    log = tmp_path / "net.json"
    with serve(colours[1]) as address:
        with open_browser(f"--log-net-log={log}") as page:
            page.open(address)
            page.give(tmp_path / "picture.png")
            messages = [entry["message"] for entry in page.driver.get_log("browser")]
            assert not [m for m in messages if "Content Security Policy" in m]
        asked = {
            event["params"]["url"]
            for event in json.loads(log.read_text())["events"]
            if address.rstrip("/") in event.get("params", {}).get("initiator", "")
        }
    names = {"model.json", "worker.js", "float32.tflite"}
    names |= {f"litert/litert_wasm_internal.{end}" for end in ("js", "wasm.gzip")}
    assert {address + name for name in names} <= asked
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)


def test_fits_a_phone(colours, page, tmp_path):
    """No sideways scrolling, whatever the classes are called; all on one screen."""
    Image.fromarray(draw(90, 70)).save(tmp_path / "picture.png")
    site = tmp_path / "web"
    shutil.copytree(colours[1], site)
    description = json.loads((site / "model.json").read_text("utf-8"))
    description["name"] = "n" * 80
    description["classes"] = ["W" * 80] * 1000
    (site / "model.json").write_text(json.dumps(description))
    for folder in (colours[1], site):
        with serve(folder) as address:
            page.open(address)
            page.give(tmp_path / "picture.png")
            wide, high = page.driver.execute_script(
                "return [document.documentElement.scrollWidth,"
                " document.getElementById('results').getBoundingClientRect().bottom]"
            )
            assert wide == 390
            small = page.driver.execute_script(
                "return Array.from(document.querySelectorAll('button, .button, select'))"
                ".filter((item) => item.getBoundingClientRect().height < 44).length"
            )
            assert small == 0
            if folder != site:
                assert high <= 844


def test_folder(digits):
    """What is in it, and what is not."""
    _, folder = digits
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    litert = {
        f"litert/{build}.{end}" for build in web.BUILDS for end in ("js", "wasm.gzip")
    }
    page = {"index.html", "style.css", "main.js", "worker.js", "model.json"}
    assert found == page | litert | {"int8.tflite", "float32.tflite"}
    assert sum((folder / name).stat().st_size for name in litert) < 10e6


def test_lock_file():
    """Pinned by hash, free of addresses."""
    lock = json.loads((web.TEMPLATE / "package-lock.json").read_text())
    packages = {name: p for name, p in lock["packages"].items() if name}
    assert {"node_modules/@litertjs/core", "node_modules/esbuild"} <= set(packages)
    for package in packages.values():
        assert package["integrity"].startswith("sha512-")
        assert "resolved" not in package
    assert "://" not in json.dumps(lock)


def test_without_npm(converted, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        InputError, match=r"web needs Node.js .* no program npm"
    ) as error:
        web.write_web(tmp_path / "web", *converted)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_npm_that_never_ends(converted, tmp_path, monkeypatch):
    (tmp_path / "npm").write_text("#!/bin/sh\nexec sleep 100\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(web, "TIMEOUT", 0.1)
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"web needs .* no end of npm ci within 0\.1 s"
    ) as error:
        web.write_web(tmp_path / "web", *converted)
    assert time.monotonic() - start < 50
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["npm"]


def test_without_a_network(converted, tmp_path, monkeypatch):
    need("npm")
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_fetch_retry_mintimeout", "10")  # Not 10 s.
    with pytest.raises(InputError, match=r"web needs .* ECONNREFUSED") as error:
        web.write_web(tmp_path / "web", *converted)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "web").exists()


def test_without_a_file(converted, tmp_path):
    with pytest.raises(InputError, match=r"needs at least one of int8.*Received: none"):
        web.write_web(tmp_path / "web", converted[0], {})


@pytest.mark.full
@pytest.mark.shared_data
def test_photographs(page, tmp_path):
    """ResNet-18 on ImageNet's own files: the same top-1 as Keras."""
    import subprocess
    import sys

    subprocess.run(
        [sys.executable, SHARED.parent / "tools/expand_weights.py", tmp_path],
        check=True,
    )
    classifier = load_classifier(str(tmp_path / "resnet18.safetensors"))
    paths = sorted((SHARED / "imagenet/jpeg100").glob("*.JPEG"))
    calibration = np.stack([classifier.preprocessing.load(p) for p in paths[50:90]])
    files = write_artifacts(classifier, tmp_path, ("float32", "int8"), calibration)
    write_page(tmp_path / "exact", classifier, {"float32": files["float32"]})
    write_page(tmp_path / "quick", classifier, files)
    images = np.stack([classifier.preprocessing.load(path) for path in paths[:20]])
    expected = classifier.model.predict(images, verbose=0)
    same = {}
    for name in ("exact", "quick"):
        with serve(tmp_path / name) as address:
            page.open(address)
            answers = [page.give(path) for path in paths[:20]]
        same[name] = sum(
            answer["answers"][0]["place"] == probabilities.argmax()
            for answer, probabilities in zip(answers, expected, strict=True)
        )
        for answer, image in zip(answers, images, strict=True):
            assert np.abs(answer["pixels"] - np.float32(image)).max() <= 1
    assert same["exact"] == 20
    assert same["quick"] >= 17
