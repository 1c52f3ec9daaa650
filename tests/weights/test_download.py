"""Atomic downloads from a real server on this machine."""

import dataclasses
import hashlib
import http.server
import os
import re
import socket
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from conftest import ROOT, run_python
from safetensors.numpy import save_file
from test_weights import IMAGENET_MEAN, IMAGENET_STD, cifar_state, to_keras_names

import keras_resnet
from keras_resnet.support.errors import InputError
from keras_resnet.weights import download, origin, registry


class Server(http.server.ThreadingHTTPServer):
    """Serves `responses`, which maps a path to bytes or to a function of the handler."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.responses, self.requests = {}, []

    def handle_error(self, *_):
        """Suppresses the output, because some tests interrupt the connection."""

    def url(self, path):
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

    def send(self, data, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

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
def cache(tmp_path, monkeypatch):
    """Empty folder that replaces the Keras cache."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "keras" / "models"


BODY = np.random.default_rng(0).bytes(700_000)


def make_row(url, body=BODY, algorithm="sha256", **changes):
    digest = hashlib.new(algorithm, body).hexdigest()
    changes = {"digest": digest[:8] if algorithm == "sha256" else digest, **changes}
    fields = {"model": "resnet20", "name": "local", "address": url, **changes}
    return dataclasses.replace(registry.REGISTRY[0], algorithm=algorithm, **fields)


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(row, cache, *parts):
    with pytest.raises(InputError) as error:
        download.fetch_weights(row)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert read_files(cache) == {}


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_file_is_downloaded_once(algorithm, server, cache, capsys):
    server.responses["/models/net.h5"] = BODY
    row = make_row(server.url("/models/net.h5"), algorithm=algorithm)
    for _ in range(2):
        assert download.fetch_weights(row) == str(cache / "net.h5") == row.path
        assert read_files(cache) == {"net.h5": BODY}
        assert server.requests == ["/models/net.h5"]
    errors = capsys.readouterr().err
    assert errors.count(row.address) == 1
    assert "0.7 MiB" in errors
    assert (cache / "net.h5").stat().st_mode & 0o777 == 0o644


def test_terminal_shows_a_progress_bar(server, monkeypatch, capsys):
    server.responses["/net.h5"] = BODY
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    download.fetch_weights(make_row(server.url("/net.h5")))
    *_, last = re.findall(r"net\.h5 .*", capsys.readouterr().err)
    assert "700.0/700.0 kB" in re.sub(r"\x1b\[[0-9;]*m", "", last)


def test_server_without_a_content_length(server, cache):
    def respond(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    server.responses["/net.h5"] = respond
    download.fetch_weights(make_row(server.url("/net.h5")))
    assert read_files(cache) == {"net.h5": BODY}


@pytest.mark.parametrize("damaged", [b"", BODY[:-1], BODY[:-1] + b"?"])
def test_damaged_file_is_downloaded_again(damaged, server, cache, capsys):
    server.responses["/net.h5"] = BODY
    cache.mkdir(parents=True)
    (cache / "net.h5").write_bytes(damaged)
    download.fetch_weights(make_row(server.url("/net.h5")))
    assert read_files(cache) == {"net.h5": BODY}
    assert f"{cache}/net.h5 is damaged" in capsys.readouterr().err


def test_damaged_file_is_kept_without_a_network(cache):
    cache.mkdir(parents=True)
    (cache / "net.h5").write_bytes(b"damaged")
    with pytest.raises(InputError, match="Could not download"):
        download.fetch_weights(make_row(url_of_closed_port()))
    assert read_files(cache) == {"net.h5": b"damaged"}


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_file_with_another_hash_is_refused(algorithm, server, cache):
    server.responses["/net.h5"] = BODY[:-1] + b"?"
    row = make_row(server.url("/net.h5"), algorithm=algorithm)
    parts = (row.address, "not the published file", algorithm, row.digest)
    assert_refused(row, cache, *parts)


@pytest.mark.parametrize("size", [0, 1, 400_000])
def test_server_that_closes_early(size, server, cache):
    server.responses["/net.h5"] = lambda handler: handler.send(BODY[:size], len(BODY))
    row = make_row(server.url("/net.h5"))
    assert_refused(row, cache, f"after {size:,} of 700,000 bytes", row.address)


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
def test_faulty_server(respond, server, cache):
    server.responses["/net.h5"] = respond
    row = make_row(server.url("/net.h5"))
    assert_refused(row, cache, row.address)


def test_file_is_missing_on_the_server(server, cache):
    row = make_row(server.url("/net.h5"))
    assert_refused(row, cache, row.address, "Not Found", f"put the file at {row.path}")


def url_of_closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/net.h5"


def test_file_can_be_copied_by_hand_without_a_network(cache):
    row = make_row(url_of_closed_port())
    assert_refused(row, cache, row.address, f"put the file at {cache}/net.h5")
    (cache / "net.h5").write_bytes(BODY)
    assert download.fetch_weights(row) == str(cache / "net.h5")


_FETCH = """
import dataclasses, sys
from keras_resnet.weights import download, registry
url, digest = sys.argv[1:]
print(download.fetch_weights(dataclasses.replace(
    registry.REGISTRY[0], address=url, algorithm="sha256", digest=digest)))
"""


def test_two_processes_download_at_the_same_time(server, cache):
    barrier = threading.Barrier(2, timeout=60)

    def respond(handler):
        barrier.wait()  # Respond to neither process before both have sent a request.
        handler.send(BODY, len(BODY))

    server.responses["/net.h5"] = respond
    row = make_row(server.url("/net.h5"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _FETCH, row.address, row.digest]
    processes = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in processes:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert output.decode().strip() == row.path
    assert read_files(cache) == {"net.h5": BODY}
    assert len(server.requests) == 2


_LIMITED_FETCH = """
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


@pytest.mark.parametrize("size", [5000, 300_000, 700_000])
def test_full_disk(size, server, cache):
    body = BODY[:size]
    server.responses["/net.h5"] = body
    row = make_row(server.url("/net.h5"), body)
    result = run_python("-c", _LIMITED_FETCH, row.address, row.path, row.digest)
    assert result.returncode == 0, result.stderr
    assert re.match(r"OSError Could not write net\.h5 ", result.stdout)
    assert "File too large" in result.stdout
    assert read_files(cache) == {}


def test_folder_that_is_not_writable(tmp_path, server):
    (tmp_path / "keras").write_text("a file instead of a folder")
    server.responses["/net.h5"] = BODY
    with pytest.raises(OSError, match="Could not write to") as error:
        download.fetch_weights(make_row(server.url("/net.h5")))
    assert "\n" not in str(error.value)
    assert server.requests == []


def test_interrupted_download_leaves_no_file(server, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    server.responses["/net.h5"] = BODY
    monkeypatch.setattr(download, "_read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download.fetch_weights(make_row(server.url("/net.h5")))
    assert read_files(cache) == {}


@pytest.mark.parametrize("weights", ["imagenet", "local"])
def test_network_has_the_weights_of_the_server(
    weights, server, cache, monkeypatch, tmp_path
):
    state = cifar_state(3)
    save_file(state, tmp_path / "net.safetensors")
    body = (tmp_path / "net.safetensors").read_bytes()
    server.responses["/net.safetensors"] = body
    row = make_row(
        server.url("/net.safetensors"),
        body,
        data="cifar10",
        stride_on=None,
        pixels=origin.PIXEL_FORMATS["torch"]._replace(interpolation="bicubic"),
    )
    monkeypatch.setattr(registry, "REGISTRY", (row,))
    for build in (
        lambda: keras_resnet.ResNet20(weights=weights),
        lambda: keras_resnet.ResNet("ResNet20", weights=weights),
    ):
        model = build()
        arrays = {
            f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
            for layer in model.layers
            for variable in layer.weights
        }
        expected = to_keras_names(state)
        assert arrays.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)
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
    assert read_files(cache) == {"net.safetensors": body}
