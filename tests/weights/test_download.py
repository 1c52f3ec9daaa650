"""Downloads that are whole or not at all, from a real server on this machine."""

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
from test_weights import IMAGENET_MEAN, IMAGENET_STD, cifar_state, in_keras

import keras_resnet
from keras_resnet.support.errors import InputError
from keras_resnet.weights import download, origin, registry


class Server(http.server.ThreadingHTTPServer):
    """Serves `answers`, dict from path to bytes or to a function of the handler."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = {}, []

    def handle_error(self, *_):
        """Says nothing: some clients here break off, as they should."""

    def address(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        answer = self.server.answers.get(self.path)
        if answer is None:
            self.send_error(404)
        elif callable(answer):
            answer(self)
        else:
            self.send(answer, len(answer))

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
    """Where Keras keeps models; empty."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "keras" / "models"


BODY = np.random.default_rng(0).bytes(700_000)


def row_of(address, body=BODY, algorithm="sha256", **changes):
    digest = hashlib.new(algorithm, body).hexdigest()
    changes = {"digest": digest[:8] if algorithm == "sha256" else digest, **changes}
    fields = {"model": "resnet20", "name": "local", "address": address, **changes}
    return dataclasses.replace(registry.REGISTRY[0], algorithm=algorithm, **fields)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(row, cache, *words):
    with pytest.raises(InputError) as error:
        download.fetch_weights(row)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert files(cache) == {}


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_downloaded_once(algorithm, server, cache, capsys):
    server.answers["/models/net.h5"] = BODY
    row = row_of(server.address("/models/net.h5"), algorithm=algorithm)
    for _ in range(2):
        assert download.fetch_weights(row) == str(cache / "net.h5") == row.path
        assert files(cache) == {"net.h5": BODY}
        assert server.requests == ["/models/net.h5"]
    error = capsys.readouterr().err
    assert error.count(row.address) == 1
    assert "0.7 MiB" in error
    assert (cache / "net.h5").stat().st_mode & 0o777 == 0o644


def test_progress_on_a_terminal(server, monkeypatch, capsys):
    server.answers["/net.h5"] = BODY
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    download.fetch_weights(row_of(server.address("/net.h5")))
    *_, last = re.findall(r"net\.h5 .*", capsys.readouterr().err)
    assert "700.0/700.0 kB" in re.sub(r"\x1b\[[0-9;]*m", "", last)


def test_size_that_the_server_does_not_say(server, cache):
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    server.answers["/net.h5"] = answer
    download.fetch_weights(row_of(server.address("/net.h5")))
    assert files(cache) == {"net.h5": BODY}


@pytest.mark.parametrize("damaged", [b"", BODY[:-1], BODY[:-1] + b"?"])
def test_damaged_file_is_downloaded_anew(damaged, server, cache, capsys):
    server.answers["/net.h5"] = BODY
    cache.mkdir(parents=True)
    (cache / "net.h5").write_bytes(damaged)
    download.fetch_weights(row_of(server.address("/net.h5")))
    assert files(cache) == {"net.h5": BODY}
    assert f"{cache}/net.h5 is not the published file" in capsys.readouterr().err


def test_damaged_file_without_a_network(cache):
    cache.mkdir(parents=True)
    (cache / "net.h5").write_bytes(b"damaged")
    with pytest.raises(InputError, match="Could not download"):
        download.fetch_weights(row_of(closed_port()))
    assert files(cache) == {"net.h5": b"damaged"}


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_other_file_than_published(algorithm, server, cache):
    server.answers["/net.h5"] = BODY[:-1] + b"?"
    row = row_of(server.address("/net.h5"), algorithm=algorithm)
    words = (row.address, "not the published file", algorithm, row.digest)
    assert_refused(row, cache, *words)


@pytest.mark.parametrize("sent", [0, 1, 400_000])
def test_server_that_closes_early(sent, server, cache):
    server.answers["/net.h5"] = lambda handler: handler.send(BODY[:sent], len(BODY))
    row = row_of(server.address("/net.h5"))
    assert_refused(row, cache, f"after {sent:,} of 700,000 bytes", row.address)


def chunked(handler):
    """Ends in the middle of a piece."""
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"10000\r\n" + BODY[:1000])
    handler.close_connection = True


@pytest.mark.parametrize(
    "answer",
    [
        chunked,
        lambda handler: handler.wfile.write(b"220 mail.example.org ESMTP\r\n\r\n"),
        lambda handler: None,
        lambda handler: handler.send_error(503),
    ],
    ids=["chunked", "no HTTP", "nothing", "503"],
)
def test_server_with_a_fault(answer, server, cache):
    server.answers["/net.h5"] = answer
    row = row_of(server.address("/net.h5"))
    assert_refused(row, cache, row.address)


def test_missing_on_the_server(server, cache):
    row = row_of(server.address("/net.h5"))
    assert_refused(row, cache, row.address, "Not Found", f"put the file at {row.path}")


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/net.h5"


def test_without_a_network_the_file_is_put_by_hand(cache):
    row = row_of(closed_port())
    assert_refused(row, cache, row.address, f"put the file at {cache}/net.h5")
    (cache / "net.h5").write_bytes(BODY)
    assert download.fetch_weights(row) == str(cache / "net.h5")


_FETCH = """
import dataclasses, sys
from keras_resnet.weights import download, registry
address, digest = sys.argv[1:]
print(download.fetch_weights(dataclasses.replace(
    registry.REGISTRY[0], address=address, algorithm="sha256", digest=digest)))
"""


def test_two_processes_at_once(server, cache):
    both = threading.Barrier(2, timeout=60)

    def answer(handler):
        both.wait()  # Neither gets anything before the other has asked.
        handler.send(BODY, len(BODY))

    server.answers["/net.h5"] = answer
    row = row_of(server.address("/net.h5"))
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
    assert files(cache) == {"net.h5": BODY}
    assert len(server.requests) == 2


_FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from keras_resnet.weights import download
address, path, digest = sys.argv[1:]
try:
    download.fetch_file(address, path, "sha256", digest)
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("size", [5000, 300_000, 700_000])
def test_disk_that_fills(size, server, cache):
    body = BODY[:size]
    server.answers["/net.h5"] = body
    row = row_of(server.address("/net.h5"), body)
    result = run_python("-c", _FULL, row.address, row.path, row.digest)
    assert result.returncode == 0, result.stderr
    assert re.match(r"OSError Could not write net\.h5 ", result.stdout)
    assert "File too large" in result.stdout
    assert files(cache) == {}


def test_folder_that_cannot_be_written(tmp_path, server):
    (tmp_path / "keras").write_text("a file where the folder should be")
    server.answers["/net.h5"] = BODY
    with pytest.raises(OSError, match="Could not write to") as error:
        download.fetch_weights(row_of(server.address("/net.h5")))
    assert "\n" not in str(error.value)
    assert server.requests == []


def test_interrupted(server, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    server.answers["/net.h5"] = BODY
    monkeypatch.setattr(download, "_read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download.fetch_weights(row_of(server.address("/net.h5")))
    assert files(cache) == {}


@pytest.mark.parametrize("weights", ["imagenet", "local"])
def test_from_the_server_into_a_network(weights, server, cache, monkeypatch, tmp_path):
    state = cifar_state(3)
    save_file(state, tmp_path / "net.safetensors")
    body = (tmp_path / "net.safetensors").read_bytes()
    server.answers["/net.safetensors"] = body
    row = row_of(
        server.address("/net.safetensors"),
        body,
        data="cifar10",
        stride_on=None,
        pixels=origin.PIXELS["torch"]._replace(interpolation="bicubic"),
    )
    monkeypatch.setattr(registry, "REGISTRY", (row,))
    for build in (
        lambda: keras_resnet.ResNet20(weights=weights),
        lambda: keras_resnet.ResNet("ResNet20", weights=weights),
    ):
        model = build()
        found = {
            f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
            for layer in model.layers
            for variable in layer.weights
        }
        expected = in_keras(state)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert model.origin.source == "resnet20/local"
        assert model.origin.model == "resnet20"
        assert model.origin.classes[:2] == ("airplane", "automobile")
        assert keras_resnet.preprocessing_for(model).interpolation == "bicubic"
        normalised = keras.Model(model.input, model.get_layer("normalization").output)
        images = np.full((1, 32, 32, 3), 100, "float32")
        wanted = (100 / 255 - np.array(IMAGENET_MEAN)) / IMAGENET_STD
        np.testing.assert_allclose(
            np.asarray(normalised(images))[0, 0, 0], wanted, rtol=1e-5
        )
    assert server.requests == ["/net.safetensors"]
    assert files(cache) == {"net.safetensors": body}
