"""Downloads from an HTTP server on this machine are verified and written atomically."""

import dataclasses
import hashlib
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
from conftest import ROOT, run_python
from safetensors.numpy import save_file
from test_weights import IMAGENET_MEAN, IMAGENET_STD, make_cifar_state, to_keras_names

import keras_resnet
from keras_resnet.support import files
from keras_resnet.support.errors import InputError
from keras_resnet.weights import download, origin, registry


class Server(http.server.ThreadingHTTPServer):
    """HTTP server for one test.

    `responses` maps each path to the body of the response, or to a function that sends
    the response with the handler. `requests` is the list of requested paths.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.responses, self.requests = {}, []

    def handle_error(self, *_):
        """Ignores errors, because some tests interrupt the connection."""

    def make_url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        response = self.server.responses.get(self.path)
        if response is None:
            self.send_error(404)
        elif callable(response):
            response(self)
        else:
            self.send(response, len(response))

    def send(self, body, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """Cache folder of Keras for one test, which does not exist yet."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "keras" / "models"


BODY = np.random.default_rng(0).bytes(700_000)


def make_row(url, body=BODY, algorithm="sha256", **changes):
    """Makes a registry row for a file with the content `body` at `url`."""
    digest = hashlib.new(algorithm, body).hexdigest()
    changes = {"digest": digest[:8] if algorithm == "sha256" else digest, **changes}
    fields = {"model": "resnet20", "name": "local", "address": url, **changes}
    return dataclasses.replace(registry.REGISTRY[0], algorithm=algorithm, **fields)


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(row, cache_folder, *parts):
    """Checks that a download fails with `parts` in the message and leaves no file."""
    with pytest.raises(InputError) as error:
        download.fetch_published_weights(row)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert read_files(cache_folder) == {}


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_file_is_downloaded_once(algorithm, server, cache_folder, capsys):
    server.responses["/models/net.h5"] = BODY
    row = make_row(server.make_url("/models/net.h5"), algorithm=algorithm)
    for _ in range(2):
        assert (
            download.fetch_published_weights(row)
            == str(cache_folder / "net.h5")
            == row.path
        )
        assert read_files(cache_folder) == {"net.h5": BODY}
        assert server.requests == ["/models/net.h5"]
    stderr = capsys.readouterr().err
    assert stderr.count(row.address) == 1
    assert "0.7 MiB" in stderr
    assert (cache_folder / "net.h5").stat().st_mode & 0o777 == 0o644


def test_terminal_shows_a_progress_bar(server, monkeypatch, capsys):
    server.responses["/net.h5"] = BODY
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    download.fetch_published_weights(make_row(server.make_url("/net.h5")))
    *_, last_line = re.findall(r"net\.h5 .*", capsys.readouterr().err)
    assert "700.0/700.0 kB" in re.sub(r"\x1b\[[0-9;]*m", "", last_line)


def send_without_length(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(BODY)


def test_download_needs_no_content_length(server, cache_folder):
    server.responses["/net.h5"] = send_without_length
    download.fetch_published_weights(make_row(server.make_url("/net.h5")))
    assert read_files(cache_folder) == {"net.h5": BODY}


@pytest.mark.parametrize("damaged_body", [b"", BODY[:-1], BODY[:-1] + b"?"])
def test_damaged_file_is_downloaded_again(damaged_body, server, cache_folder, capsys):
    server.responses["/net.h5"] = BODY
    cache_folder.mkdir(parents=True)
    (cache_folder / "net.h5").write_bytes(damaged_body)
    download.fetch_published_weights(make_row(server.make_url("/net.h5")))
    assert read_files(cache_folder) == {"net.h5": BODY}
    assert f"{cache_folder}/net.h5 is damaged" in capsys.readouterr().err


def test_damaged_file_is_kept_without_a_network(cache_folder):
    cache_folder.mkdir(parents=True)
    (cache_folder / "net.h5").write_bytes(b"damaged")
    with pytest.raises(InputError, match="Could not download"):
        download.fetch_published_weights(make_row(find_unreachable_url()))
    assert read_files(cache_folder) == {"net.h5": b"damaged"}


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_file_with_another_hash_is_refused(algorithm, server, cache_folder):
    server.responses["/net.h5"] = BODY[:-1] + b"?"
    row = make_row(server.make_url("/net.h5"), algorithm=algorithm)
    parts = (row.address, "not the published file", algorithm, row.digest)
    assert_refused(row, cache_folder, *parts)


@pytest.mark.parametrize("size", [0, 1, 400_000])
def test_incomplete_response_is_refused(size, server, cache_folder):
    server.responses["/net.h5"] = lambda handler: handler.send(BODY[:size], len(BODY))
    row = make_row(server.make_url("/net.h5"))
    assert_refused(row, cache_folder, f"after {size:,} of 700,000 bytes", row.address)


def send_part_of_a_chunk(handler):
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"10000\r\n" + BODY[:1000])
    handler.close_connection = True


@pytest.mark.parametrize(
    "respond",
    [
        send_part_of_a_chunk,
        lambda handler: handler.wfile.write(b"220 mail.example.org ESMTP\r\n\r\n"),
        lambda handler: None,
        lambda handler: handler.send_error(503),
    ],
    ids=["chunk", "no HTTP", "nothing", "503"],
)
def test_response_of_a_faulty_server_is_refused(respond, server, cache_folder):
    server.responses["/net.h5"] = respond
    row = make_row(server.make_url("/net.h5"))
    assert_refused(row, cache_folder, row.address)


def test_error_404_is_reported(server, cache_folder):
    row = make_row(server.make_url("/net.h5"))
    assert_refused(
        row, cache_folder, row.address, "Not Found", f"put the file at {row.path}"
    )


def find_unreachable_url():
    """Returns a URL whose port no server listens on."""
    with socket.socket() as unused_socket:
        unused_socket.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused_socket.getsockname()[1]}/net.h5"


def test_file_can_be_copied_by_hand_without_a_network(cache_folder):
    row = make_row(find_unreachable_url())
    assert_refused(
        row, cache_folder, row.address, f"put the file at {cache_folder}/net.h5"
    )
    (cache_folder / "net.h5").write_bytes(BODY)
    assert download.fetch_published_weights(row) == str(cache_folder / "net.h5")


_FETCH_CODE = """
import dataclasses, sys
from keras_resnet.weights import download, registry
url, digest = sys.argv[1:]
print(download.fetch_published_weights(dataclasses.replace(
    registry.REGISTRY[0], address=url, algorithm="sha256", digest=digest)))
"""


def test_two_processes_download_at_the_same_time(server, cache_folder):
    barrier = threading.Barrier(2, timeout=60)

    def respond(handler):
        barrier.wait()  # Wait until both processes have sent a request.
        handler.send(BODY, len(BODY))

    server.responses["/net.h5"] = respond
    row = make_row(server.make_url("/net.h5"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _FETCH_CODE, row.address, row.digest]
    processes = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in processes:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert stdout.decode().strip() == row.path
    assert read_files(cache_folder) == {"net.h5": BODY}
    assert len(server.requests) == 2


_LIMITED_FETCH_CODE = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from keras_resnet.weights import download
url, path, digest = sys.argv[1:]
try:
    download.fetch_file(url, path, "sha256", digest)
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("size", [5000, 700_000])
def test_full_disk_leaves_no_file(size, server, cache_folder):
    body = BODY[:size]
    server.responses["/net.h5"] = body
    row = make_row(server.make_url("/net.h5"), body)
    process = run_python("-c", _LIMITED_FETCH_CODE, row.address, row.path, row.digest)
    assert process.returncode == 0, process.stderr
    message = f"WriteError Could not write {row.path}: File too large\n"
    assert process.stdout == message
    assert read_files(cache_folder) == {}


def test_unwritable_folder_fails_before_the_download(tmp_path, server):
    (tmp_path / "keras").write_text("a file instead of a folder")
    server.responses["/net.h5"] = BODY
    with pytest.raises(OSError, match="Could not write to") as error:
        download.fetch_published_weights(make_row(server.make_url("/net.h5")))
    assert "\n" not in str(error.value)
    assert server.requests == []


def test_interrupted_download_leaves_no_file(server, cache_folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    server.responses["/net.h5"] = BODY
    monkeypatch.setattr(download, "_read_blocks", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download.fetch_published_weights(make_row(server.make_url("/net.h5")))
    assert read_files(cache_folder) == {}


def send_half(handler):
    """Announces more bytes than it sends before the client closes the connection."""
    handler.send(BODY[:1000], len(BODY))
    handler.rfile.read()


@pytest.mark.parametrize("respond", [send_half, send_without_length])
def test_the_size_is_limited(respond, server, cache_folder, monkeypatch):
    """An announced size is refused before the content arrives."""
    server.responses["/net.h5"] = respond
    monkeypatch.setattr(download, "_MAX_BYTES", 600_000)
    row = make_row(server.make_url("/net.h5"))
    assert_refused(row, cache_folder, row.address, "stopped (more than 600,000 bytes)")


def test_every_published_file_is_within_the_limit():
    sizes = [row.mebibytes for row in registry.REGISTRY if row.mebibytes]
    assert max(sizes) * 2**20 < download._MAX_BYTES / 4


def test_the_time_is_limited(server, cache_folder, monkeypatch):
    """A server that sends a few bytes again and again never exceeds a socket timeout."""

    def send_slowly(handler):
        handler.send(BODY[:300_000], len(BODY))
        for byte in BODY[300_000:]:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)

    server.responses["/net.h5"] = send_slowly
    monkeypatch.setattr(download, "_SECONDS", 0.3)
    row = make_row(server.make_url("/net.h5"))
    start = time.monotonic()
    assert_refused(row, cache_folder, row.address, "less than 262,144 bytes in 0.3 s")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/net.h5", "data:,text", "//\n", "/net.h5"],
)
def test_other_protocols_are_refused_after_a_redirect(target, server, cache_folder):
    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    server.responses["/net.h5"] = redirect
    row = make_row(server.make_url("/net.h5"))
    assert_refused(row, cache_folder, f"Could not download {row.address}")


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/net.h5", "data:,text", "http:///net.h5",
            "http://[::1/net.h5", "http://127.0.0.1:99999/net.h5", "http://h/\x1bnet.h5"],
)  # fmt: skip
def test_other_urls_are_refused(url, cache_folder):
    path = str(cache_folder / "net.h5")
    with pytest.raises(InputError, match="Could not download"):
        download.fetch_file(url, path, "sha256", "0" * 64)
    assert read_files(cache_folder) == {}


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_only_a_file_in_the_cache_is_read(make, server, cache_folder):
    """A pipe would block for ever."""
    cache_folder.mkdir(parents=True)
    make(cache_folder / "net.h5")
    row = make_row(server.make_url("/net.h5"))
    with pytest.raises(InputError, match=r"net\.h5 is not a file"):
        download.fetch_published_weights(row)
    assert server.requests == []


def test_partial_files_of_killed_downloads_are_removed(server, cache_folder):
    """The partial file of a process that is still running is kept."""
    cache_folder.mkdir(parents=True)
    finished_process = subprocess.Popen(["true"])
    finished_process.wait()
    name = os.path.basename(files._make_temporary_path(str(cache_folder / "net.h5")))
    running_pid, killed_pid = str(os.getppid()), str(finished_process.pid)
    kept_name, removed_name = (
        name.replace(str(os.getpid()), pid) for pid in (running_pid, killed_pid)
    )
    for partial_name in (kept_name, removed_name):
        (cache_folder / partial_name).write_bytes(b"partial")
    server.responses["/net.h5"] = BODY
    download.fetch_published_weights(make_row(server.make_url("/net.h5")))
    assert read_files(cache_folder) == {"net.h5": BODY, kept_name: b"partial"}


def test_network_has_the_weights_of_the_server(
    server, cache_folder, monkeypatch, tmp_path
):
    state = make_cifar_state(3)
    save_file(state, tmp_path / "net.safetensors")
    body = (tmp_path / "net.safetensors").read_bytes()
    server.responses["/net.safetensors"] = body
    row = make_row(
        server.make_url("/net.safetensors"),
        body,
        data="cifar10",
        stride_on=None,
        pixels=origin.PIXEL_FORMATS["torch"]._replace(interpolation="bicubic"),
    )
    monkeypatch.setattr(registry, "REGISTRY", (row,))
    for build in (
        lambda: keras_resnet.ResNet20(weights="imagenet"),
        lambda: keras_resnet.ResNet("ResNet20", weights="local"),
    ):
        model = build()
        model_arrays = {
            f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
            for layer in model.layers
            for variable in layer.weights
        }
        expected_arrays = to_keras_names(state)
        assert model_arrays.keys() == expected_arrays.keys()
        for name, array in expected_arrays.items():
            np.testing.assert_array_equal(model_arrays[name], array, err_msg=name)
        assert model.origin.source == "resnet20/local"
        assert model.origin.model == "resnet20"
        assert model.origin.classes[:2] == ("airplane", "automobile")
        assert keras_resnet.preprocessing_for(model).interpolation == "bicubic"
        normalised = keras.Model(model.input, model.get_layer("normalization").output)
        images = np.full((1, 32, 32, 3), 100, "float32")
        expected_pixel = (100 / 255 - np.array(IMAGENET_MEAN)) / IMAGENET_STD
        np.testing.assert_allclose(
            np.asarray(normalised(images))[0, 0, 0], expected_pixel, rtol=1e-5
        )
    assert server.requests == ["/net.safetensors"]
    assert read_files(cache_folder) == {"net.safetensors": body}
