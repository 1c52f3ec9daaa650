"""The exported web page in headless Chromium."""

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

# Time limit of each browser operation (such as loading a page), in seconds.
TIMEOUT = 60
CHROMIUM_FLAGS = (
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
# JavaScript that returns what the page shows, as an object.
READ_RESULTS = """
const seen = document.querySelector("#seen canvas");
const pixels = seen.getContext("2d").getImageData(0, 0, seen.width, seen.height).data;
return {
    predictions: Array.from(document.querySelectorAll("#results li"), (row) => ({
        index: Number(row.dataset.class),
        label: row.children[0].textContent,
        percentage: row.children[1].textContent,
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
# JavaScript expression for the text of the message on the page.
MESSAGE = "document.getElementById('message').textContent"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Adds `extra_headers` to responses and delays them by `delays[path]` seconds."""

    extra_headers = ()
    delays: dict[str, float]

    def do_GET(self):
        time.sleep(self.delays.get(self.path, 0))
        super().do_GET()

    def log_message(self, *arguments):
        pass

    def end_headers(self):
        for header in self.extra_headers:
            self.send_header(*header)
        super().end_headers()


@contextlib.contextmanager
def serve(folder, *headers, delays=()):
    """Serves a folder like `python -m http.server` and yields its URL.

    Args:
        folder: Folder to serve.
        *headers: Additional headers of every response, (name, value).
        delays: Delays in seconds by the URL path of a file, such as "/model.json".
    """
    class_attributes = {"extra_headers": headers, "delays": dict(delays)}
    handler_class = type("Handler", (Handler,), class_attributes)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler_class, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Page:
    """The exported web page in Chromium, with the screen size of a phone."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url):
        self.driver.get(url)
        self.wait("document.documentElement.dataset.ready")

    def wait(self, expression, seconds=TIMEOUT):
        """Waits until a JavaScript expression is true, and returns its value."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.driver.execute_script(f"return {expression}"):
                return value
            time.sleep(0.05)
        page_text = self.driver.execute_script("return document.body.innerText")
        raise TimeoutError(
            f"{expression}: {page_text} {self.driver.get_log('browser')}"
        )

    def classify(self, path):
        """Chooses an image file on the page, and returns the results that it shows."""
        self.clear_results()
        self.driver.find_element("id", "file").send_keys(str(path))
        return self.read_results()

    def clear_results(self):
        self.driver.execute_script(
            "delete document.getElementById('time').dataset.milliseconds"
        )

    def read_results(self):
        self.wait("document.getElementById('time').dataset.milliseconds")
        results = self.driver.execute_script(READ_RESULTS)
        pixels = np.array(results["pixels"], np.uint8).reshape(results["size"])
        return results | {"pixels": pixels[..., :3]}

    def choose_networks(self, *indices):
        """Selects networks by their index in the menu, without waiting in between."""
        self.driver.execute_script(
            """const list = document.getElementById("model");
            for (const index of arguments) {
                list.selectedIndex = index;
                list.dispatchEvent(new Event("change"));
            }""",
            *indices,
        )

    def set_camera_permission(self, permission):
        self.driver.execute_cdp_cmd(
            "Browser.setPermission",
            {"permission": {"name": "camera"}, "setting": permission},
        )


def require_commands(*commands):
    """Skips the test if a command is not installed."""
    for command in commands:
        if not shutil.which(command):
            pytest.skip(
                f"needs the command {command} (Debian: chromium chromium-driver npm)"
            )


@contextlib.contextmanager
def open_browser(*flags):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium, which drives the browser"
    )
    require_commands("chromium", "chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        )
        for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={profile}", *flags):
            options.add_argument(flag)
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        stack.callback(service.stop)  # Stops chromedriver if no browser starts.
        # Without a socket timeout, Selenium may wait for chromedriver forever.
        original_timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(1.5 * TIMEOUT)
        try:
            driver = webdriver.Chrome(options, service)
        finally:
            socket.setdefaulttimeout(original_timeout)
        stack.callback(driver.quit)
        driver.set_page_load_timeout(TIMEOUT)
        driver.set_script_timeout(TIMEOUT)
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
    """Writes the web page. Skips the test if npm or its registry is unavailable."""
    skip_pattern = r"npm is not on|request to \S+ failed|timeout|npm ci did not end"
    try:
        web.write_web(path, classifier, files)
    except InputError as error:
        if re.search(skip_pattern, str(error)):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def digits_files(trained_run, tmp_path_factory):
    """Classifier of digits, and a dict from formats to paths of its files."""
    folder = tmp_path_factory.mktemp("converted")
    classifier = load_classifier(str(trained_run))
    calibration = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    names = ("float32", "int8")
    return classifier, write_artifacts(classifier, folder, names, calibration)


@pytest.fixture(scope="module")
def digits_site(digits_files, tmp_path_factory):
    """Classifier of digits, and the folder of its web page."""
    classifier, files = digits_files
    folder = tmp_path_factory.mktemp("web") / "web"
    with pytest.MonkeyPatch.context() as patch:
        # The build must install esbuild although this variable makes npm exclude it.
        patch.setenv("NODE_ENV", "production")
        write_page(folder, classifier, files)
    return classifier, folder


@pytest.fixture(scope="module")
def colours_site(digits_site, tmp_path_factory):
    """Classifier of RGB images with 1,000 classes, and the folder of its web page.

    The last layer has large random weights, so that predictions differ by image.
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
        # The page of the digits is copied, because a second build would take seconds.
        patch.setattr(
            web, "_build", lambda work_dir, path: shutil.copytree(digits_site[1], path)
        )
        web.write_web(folder / "web", classifier, files)
    return classifier, folder / "web"


def assert_results(results, expected, classes, atol):
    """Checks that the page shows the five largest of the expected probabilities."""
    predictions = results["predictions"]
    top_indices = np.argsort(-expected, kind="stable")[: len(predictions)]
    assert predictions[0]["index"] == top_indices[0]
    assert len(predictions) == min(5, len(classes))
    for prediction in predictions:
        assert prediction["label"] == classes[prediction["index"]]
        assert abs(prediction["probability"] - expected[prediction["index"]]) <= atol
        percentage = float(prediction["percentage"].removesuffix(" %"))
        assert abs(percentage - 100 * prediction["probability"]) <= 0.51
    assert predictions[-1]["probability"] >= expected[top_indices[-1]] - atol
    assert results["milliseconds"] >= 0
    assert re.fullmatch(r"(< 0\.1|\d+\.\d|\d+) ms", results["time"])


def test_page_predicts_digits_like_keras(digits_site, page, tmp_path):
    """The page shows about the same probabilities as Keras, in float32 and in int8."""
    classifier, folder = digits_site
    split = sources.load_dataset("digits").test
    images = np.stack([split.images[i] for i in range(12)])
    expected = classifier.model.predict(images, verbose=0)
    assert len(set(expected.argmax(axis=1))) > 5
    with serve(folder) as url:
        page.open(url)
        options = page.driver.execute_script(
            "return Array.from(document.querySelectorAll('option'), (o) => o.text)"
        )
        assert [option.split(",")[0] for option in options] == ["int8", "float32"]
        for index, atol in ((1, 1e-5), (0, 0.25)):
            page.choose_networks(index)
            page.wait("document.documentElement.dataset.ready")
            for image, probabilities in zip(images, expected, strict=True):
                keras.utils.save_img(tmp_path / "digit.png", image, scale=False)
                results = page.classify(tmp_path / "digit.png")
                rgb_pixels = image.repeat(3, axis=-1)
                np.testing.assert_array_equal(results["pixels"], rgb_pixels)
                assert_results(results, probabilities, classifier.classes, atol)
                label = results["predictions"][0]["label"]
                assert results["said"].startswith(f"{label}, ")
                assert results["alt"] == "Your image digit.png"


def draw_image(height, width, seed=0):
    """Returns an RGB image of coarse colours with fine noise."""
    random = np.random.default_rng(seed)
    coarse_image = random.integers(0, 256, (7, 9, 3), np.uint8)
    image = np.asarray(Image.fromarray(coarse_image).resize((width, height), 2), float)
    return (image + random.normal(0, 20, image.shape)).clip(0, 255).astype(np.uint8)


def write_images(folder):
    """Writes image files of many formats and sizes, and returns their paths."""
    tall_image = Image.fromarray(draw_image(437, 301))
    wide_image = Image.fromarray(draw_image(120, 411))
    rotated_exif = Image.Exif()
    rotated_exif[0x0112] = 6
    images = {
        "photo.jpg": (tall_image, {"quality": 90}),
        "full.jpg": (wide_image, {"quality": 95, "subsampling": 0}),
        "rotated.jpg": (tall_image, {"exif": rotated_exif}),
        "grey.jpg": (tall_image.convert("L"), {}),
        "small.png": (Image.fromarray(draw_image(31, 23)), {}),
        "exact.png": (Image.fromarray(draw_image(64, 46)), {}),
        "palette.png": (wide_image.convert("P"), {}),
        "lossless.webp": (wide_image, {"lossless": True}),
        "first.gif": (wide_image.convert("P"), {}),
        # The page reads this image in several strips of 256 rows.
        "large.png": (Image.fromarray(draw_image(1100, 700)), {}),
        "profile.png": (wide_image, {"icc_profile": make_swapped_profile()}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [folder / name for name in images]


def make_swapped_profile():
    """Returns an ICC profile that swaps the red and green primaries of sRGB."""
    from PIL import ImageCms

    profile = bytearray(
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    num_tags = int.from_bytes(profile[128:132], "big")
    entries = [profile[132 + 12 * i : 144 + 12 * i] for i in range(num_tags)]
    offsets = {bytes(entry[:4]): 132 + 12 * i for i, entry in enumerate(entries)}
    red_offset, green_offset = offsets[b"rXYZ"], offsets[b"gXYZ"]
    profile[red_offset : red_offset + 4] = b"gXYZ"
    profile[green_offset : green_offset + 4] = b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_agree_with_python(
    colours_site, digits_site, page, tmp_path, channels, interpolation
):
    """The pixels of the page and of Python differ by at most 1, for every file."""
    classifier, folder = colours_site
    if channels == 1:
        classifier, folder = digits_site
    settings = {
        "height": 56 if channels == 3 else 8,
        "width": 40 if channels == 3 else 8,
        "channels": channels,
        "crop": 0.875,
        "interpolation": interpolation,
    }
    preprocessing = Preprocessing(**settings)
    site = tmp_path / "web"
    shutil.copytree(folder, site)
    description = json.loads((site / "model.json").read_text("utf-8"))
    cover = [round(settings[side] / 0.875) for side in ("height", "width")]
    if channels == 3 and interpolation == "bilinear":
        assert description["cover"] == cover
    description |= settings | {"cover": cover}
    (site / "model.json").write_text(json.dumps(description))
    with serve(site) as url:
        page.open(url)
        for path in write_images(tmp_path):
            results = page.classify(path)
            pixels = preprocessing.load(path)
            difference = np.abs(results["pixels"] - np.float32(pixels)).max()
            assert difference <= 1, path.name
            if channels == 3 and interpolation == "bilinear":
                probabilities = classifier.model.predict(
                    results["pixels"][None], verbose=0
                )[0]
                assert_results(results, probabilities, classifier.classes, 1e-5)


def test_pasted_and_dropped_images_are_classified(colours_site, page, tmp_path):
    classifier, folder = colours_site
    image = draw_image(64, 46)
    Image.fromarray(image).save(tmp_path / "image.png")
    expected = classifier.preprocessing.load(tmp_path / "image.png")
    content = list((tmp_path / "image.png").read_bytes())
    with serve(folder) as url:
        page.open(url)
        for event in (
            "new ClipboardEvent('paste', {clipboardData: transfer})",
            "new DragEvent('drop', {dataTransfer: transfer, cancelable: true})",
        ):
            page.clear_results()
            page.driver.execute_script(
                f"""const transfer = new DataTransfer();
                const content = new Uint8Array(arguments[0]);
                transfer.items.add(new File([content], "a.png", {{type: "image/png"}}));
                document.dispatchEvent({event});""",
                content,
            )
            np.testing.assert_array_equal(page.read_results()["pixels"], expected)
            page.driver.refresh()
            page.wait("document.documentElement.dataset.ready")


def test_files_that_are_not_images_show_a_message(digits_site, page, tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    Image.fromarray(draw_image(40, 40)).save(tmp_path / "intact.png")
    content = (tmp_path / "intact.png").read_bytes()
    (tmp_path / "damaged.png").write_bytes(content[:30])
    with serve(digits_site[1]) as url:
        page.open(url)
        for name in ("notes.txt", "damaged.png"):
            page.driver.find_element("id", "file").send_keys(str(tmp_path / name))
            page.wait(f"{MESSAGE}.startsWith('{name} is not an image')")
        page.classify(tmp_path / "intact.png")
        assert page.wait("document.getElementById('message').hidden")


def test_camera_images_are_classified(digits_site, page):
    classifier, folder = digits_site
    with serve(folder) as url:
        page.open(url)
        page.set_camera_permission("denied")
        page.driver.find_element("id", "camera").click()
        page.wait(f"{MESSAGE}.includes('may not use the camera')")
        page.set_camera_permission("granted")
        page.driver.refresh()
        page.wait("document.documentElement.dataset.ready")
        page.driver.find_element("id", "camera").click()
        frames = []
        for _ in range(3):
            page.clear_results()
            results = page.read_results()
            frames.append(results["pixels"].tobytes())
            expected = classifier.model.predict(
                results["pixels"][None, ..., :1], verbose=0
            )
            assert_results(results, expected[0], classifier.classes, 0.3)
        assert page.driver.find_element("id", "camera").text == "Stop camera"
        page.driver.find_element("id", "camera").click()
        page.wait("document.getElementById('video').srcObject === null")
        assert page.driver.find_element("id", "camera").text == "Camera"


def test_the_network_chosen_last_is_used(digits_site, page):
    """The network chosen first is not used, although its file arrives last."""
    classifier, folder = digits_site
    # The browser's cache would make the delays ineffective.
    no_cache_header = ("Cache-Control", "no-store")
    delays = {"/int8.tflite": 0.6, "/float32.tflite": 0.3}
    with serve(folder, no_cache_header, delays=delays) as url:
        page.open(url)
        page.set_camera_permission("granted")
        page.driver.find_element("id", "camera").click()
        page.read_results()
        page.choose_networks(0, 1)
        ready_expression = "document.documentElement.dataset.ready"
        assert page.wait(ready_expression) == "float32"
        time.sleep(0.6)  # The delayed int8 file arrives in the meantime.
        page.clear_results()
        results = page.read_results()
        assert page.wait(ready_expression) == "float32"
        assert page.wait("document.getElementById('message').hidden")
        page.driver.find_element("id", "camera").click()
    pixels = results["pixels"][None, ..., :1]
    expected = classifier.model.predict(pixels, verbose=0)[0]
    assert_results(results, expected, classifier.classes, 1e-5)


def test_threads_are_used_if_the_server_allows_them(colours_site, page, tmp_path):
    classifier, folder = colours_site
    Image.fromarray(draw_image(90, 70)).save(tmp_path / "image.png")
    headers = (
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Embedder-Policy", "require-corp"),
    )
    with serve(folder, *headers) as url:
        page.open(url)
        cores = page.driver.execute_script("return navigator.hardwareConcurrency")
        text = page.driver.find_element("id", "threads").text
        assert text == f"{cores} thread{'s' * (cores > 1)}"
        results = page.classify(tmp_path / "image.png")
    expected = classifier.model.predict(results["pixels"][None], verbose=0)[0]
    assert_results(results, expected, classifier.classes, 1e-5)


def test_a_missing_network_shows_a_message(digits_site, page, tmp_path):
    site = tmp_path / "web"
    shutil.copytree(digits_site[1], site)
    (site / "int8.tflite").unlink()
    with serve(site) as url:
        page.driver.get(url)
        page.wait(f"{MESSAGE}.includes('int8.tflite: 404')")
        page.choose_networks(1)
        page.wait("document.documentElement.dataset.ready === 'float32'")
        assert page.wait("document.getElementById('message').hidden")
        (site / "litert/litert_wasm_internal.wasm.gzip").write_bytes(b"no wasm")
        page.driver.get(url)
        page.wait(f"{MESSAGE}.startsWith('The network does not run')")


def test_a_page_opened_as_a_file_shows_a_message(digits_site, page):
    page.driver.get((digits_site[1] / "index.html").as_uri())
    page.wait(f"{MESSAGE}.includes('python -m http.server')")


def test_nothing_leaves_this_machine(colours_site, tmp_path):
    """Chromium's network log, which covers workers, has only URLs of this server."""
    Image.fromarray(draw_image(90, 70)).save(tmp_path / "image.png")
    log_path = tmp_path / "net.json"
    with serve(colours_site[1]) as base_url:
        with open_browser(f"--log-net-log={log_path}") as page:
            page.open(base_url)
            page.classify(tmp_path / "image.png")
            messages = [entry["message"] for entry in page.driver.get_log("browser")]
            assert not [m for m in messages if "Content Security Policy" in m]
        requested_urls = {
            event["params"]["url"]
            for event in json.loads(log_path.read_text())["events"]
            if base_url.rstrip("/") in event.get("params", {}).get("initiator", "")
        }
    names = {"model.json", "worker.js", "float32.tflite"}
    names |= {f"litert/litert_wasm_internal.{suffix}" for suffix in ("js", "wasm.gzip")}
    assert {base_url + name for name in names} <= requested_urls
    assert all(url.startswith((base_url, "blob:", "data:")) for url in requested_urls)


def test_page_fits_the_screen_of_a_phone(colours_site, page, tmp_path):
    """The page is no wider than the screen, even if class names are long.

    If class names are short, the results are visible without scrolling.
    """
    Image.fromarray(draw_image(90, 70)).save(tmp_path / "image.png")
    site = tmp_path / "web"
    shutil.copytree(colours_site[1], site)
    description = json.loads((site / "model.json").read_text("utf-8"))
    description["name"] = "n" * 80
    description["classes"] = ["W" * 80] * 1000
    (site / "model.json").write_text(json.dumps(description))
    for folder in (colours_site[1], site):
        with serve(folder) as url:
            page.open(url)
            page.classify(tmp_path / "image.png")
            page_width, results_bottom = page.driver.execute_script(
                "return [document.documentElement.scrollWidth,"
                " document.getElementById('results').getBoundingClientRect().bottom]"
            )
            assert page_width == 390
            num_small_buttons = page.driver.execute_script(
                "return Array.from(document.querySelectorAll('button, .button, select'))"
                ".filter((item) => item.getBoundingClientRect().height < 44).length"
            )
            assert num_small_buttons == 0
            if folder != site:
                assert results_bottom <= 844


def test_folder_has_only_page_runtime_and_networks(digits_site):
    _, folder = digits_site
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    litert_files = {
        f"litert/{build}.{suffix}"
        for build in web.BUILDS
        for suffix in ("js", "wasm.gzip")
    }
    page_files = {"index.html", "style.css", "main.js", "worker.js", "model.json"}
    assert files == page_files | litert_files | {"int8.tflite", "float32.tflite"}
    assert sum((folder / name).stat().st_size for name in litert_files) < 10e6


def test_lock_file_has_hashes_and_no_urls():
    lock_content = json.loads((web.TEMPLATE / "package-lock.json").read_text())
    packages = {name: p for name, p in lock_content["packages"].items() if name}
    assert {"node_modules/@litertjs/core", "node_modules/esbuild"} <= set(packages)
    for package in packages.values():
        assert package["integrity"].startswith("sha512-")
        assert "resolved" not in package
    assert "://" not in json.dumps(lock_content)


def test_missing_npm_is_an_input_error(digits_files, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        InputError, match=r"npm is not on the PATH.* web needs Node.js"
    ) as error:
        web.write_web(tmp_path / "web", *digits_files)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_npm_that_never_ends_is_an_input_error(digits_files, tmp_path, monkeypatch):
    (tmp_path / "npm").write_text("#!/bin/sh\nexec sleep 100\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(web, "TIMEOUT", 0.1)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"npm ci .* 0\.1 s.* web needs ") as error:
        web.write_web(tmp_path / "web", *digits_files)
    assert time.monotonic() - start < 50
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["npm"]


def test_an_unreachable_registry_is_an_input_error(digits_files, tmp_path, monkeypatch):
    require_commands("npm")
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_fetch_retry_mintimeout", "10")  # In milliseconds.
    with pytest.raises(
        InputError, match=r"npm failed: .* ECONNREFUSED.* web needs "
    ) as error:
        web.write_web(tmp_path / "web", *digits_files)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "web").exists()


def test_missing_files_are_an_input_error(digits_files, tmp_path):
    with pytest.raises(InputError, match=r"web needs .* int8, .*Received: none"):
        web.write_web(tmp_path / "web", digits_files[0], {})


@pytest.mark.full
@pytest.mark.shared_data
def test_page_predicts_photographs_like_keras(page, tmp_path):
    """For ResNet-18, the page predicts the same classes as Keras for most images."""
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
    write_page(tmp_path / "fast", classifier, files)
    images = np.stack([classifier.preprocessing.load(path) for path in paths[:20]])
    expected = classifier.model.predict(images, verbose=0)
    num_equal = {}
    for name in ("exact", "fast"):
        with serve(tmp_path / name) as url:
            page.open(url)
            all_results = [page.classify(path) for path in paths[:20]]
        num_equal[name] = sum(
            results["predictions"][0]["index"] == probabilities.argmax()
            for results, probabilities in zip(all_results, expected, strict=True)
        )
        for results, image in zip(all_results, images, strict=True):
            assert np.abs(results["pixels"] - np.float32(image)).max() <= 1
    assert num_equal["exact"] == 20
    assert num_equal["fast"] >= 17
