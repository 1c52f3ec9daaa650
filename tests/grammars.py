"""Grammars of bad input: functions that damage a file, each in its own way.

Each function takes the path of a valid file and a `random.Random`, and damages the file
in place. `BYTES`, `TEXT`, `JSON`, `PATHS` and the tables below map the names of mutations to
these functions.
"""

import hashlib
import io
import json
import os
import shutil
import socket
import struct
import zipfile

import h5py
import numpy as np

# Numbers at the limits of the types that file formats use, and beyond them.
NUMBERS = (-1, 0, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64, 10**30, 1e308, 0.5)
# Text that is harmless only if no program interprets it.
TEXTS = (
    "", " ", "x" * 100_000, "\x1b]0;title\x07\x1b[2J", "\x00", "a\nb", "\u202egnp.exe",
    "=cmd|' /C calc'!A0", "../../guard/secret.txt", "/etc/passwd", "%s%n{0}", "\ud800",
    "ÿþ", "NaN", "1e999", "-0", "٣", "$(touch pwned)", "<script>alert(1)</script>",
)  # fmt: skip
SECRET = "../guard/secret.txt"  # A file outside the folder of a case.


# Bytes: functions of the content.


def truncate(content, rng):
    return content[: rng.randrange(len(content) or 1)]


def empty(content, rng):
    return b""


def flip(content, rng):
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 9, 99])):
        # Headers and indices are at the ends of most formats.
        limit = rng.choice([len(content), 64, 1024])
        position = min(rng.randrange(limit), len(content) - 1)
        changed[rng.choice([position, -1 - position])] ^= 1 << rng.randrange(8)
    return bytes(changed)


def insert(content, rng):
    position = rng.randrange(len(content))
    return (
        content[:position] + rng.randbytes(rng.choice([1, 8, 512])) + content[position:]
    )


def remove(content, rng):
    position = rng.randrange(len(content))
    return content[:position] + content[position + rng.choice([1, 8, 512]) :]


def zero(content, rng):
    position, size = rng.randrange(len(content)), rng.choice([4, 64, 4096])
    return content[:position] + bytes(size) + content[position + size :]


def repeat(content, rng):
    return content * rng.choice([2, 3])


def huge_number(content, rng):
    """Overwrites 4 or 8 bytes by a large number, mostly in the header."""
    size = rng.choice([4, 8])
    number = rng.choice([2**31 - 1, 2**32 - 1, 2**63 - 1, 2**40]) % 2 ** (8 * size)
    position = rng.randrange(min(len(content), rng.choice([64, 1024, len(content)])))
    packed = number.to_bytes(size, rng.choice(["little", "big"]))
    return content[:position] + packed + content[position + size :]


def noise(content, rng):
    return rng.randbytes(len(content))


def other_type(content, rng):
    """Returns a file of another type under the same name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../guard/pwned", "1")
    pixel = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xff\xff\x7f\xff\xff\xff\x7f\x08\x06\x00"
    return rng.choice(
        [archive.getvalue(), pixel, b"\x89HDF\r\n\x1a\n", b"GIF89a" + b"\xff" * 9,
         b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", b"{}", b"[" * 100_000,
         b"\x7fELF", b"\x1f\x8b\x08", b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"null"]
    )  # fmt: skip


BYTE_CHANGES = (truncate, empty, flip, insert, remove, zero, repeat, huge_number, noise,
                other_type)  # fmt: skip


# Text and JSON.


def replace_token(content, rng):
    """Replaces a number or a word of a text by a hostile one."""
    words = content.replace(b"\t", b" ").replace(b",", b" ").replace(b'"', b" ").split()
    token = str(rng.choice([*NUMBERS, *TEXTS])).encode("utf-8", "surrogatepass")
    return content.replace(rng.choice(words), token, rng.choice([1, -1]))


def edit_lines(content, rng):
    """Deletes, repeats, swaps or cuts lines."""
    lines = content.splitlines(keepends=True)
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    edits = [lines[:i] + lines[i + 1 :], lines + lines, lines * 5000, [*reversed(lines)],
             [*lines[:i], lines[j], *lines[i:]], [line[: i + 3] for line in lines]]  # fmt: skip
    return b"".join(rng.choice(edits))


def encode_otherwise(content, rng):
    text = content.decode("utf-8", "replace") + rng.choice(["", "é", "\u2028"])
    encoding = rng.choice(["utf-16", "utf-8-sig", "utf-32-le", "cp1252", "utf-7"])
    return text.encode(encoding, "replace")


def edit_json(content, rng):
    """Replaces, deletes or nests a random value of a JSON document."""
    document = json.loads(content)
    places, queue = [], [document]
    while queue:
        node = queue.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            places.append((node, key))
            if isinstance(value, dict | list):
                queue.append(value)
    node, key = rng.choice(places)
    values = [None, True, [], {}, [[]], {"a": None}, *NUMBERS, *TEXTS, float("nan")]
    if rng.random() < 0.1:
        del node[key]
    elif rng.random() < 0.1:
        node[key] = "NESTED"
    else:
        node[key] = rng.choice(values)
    text = json.dumps(document)
    depth = rng.choice([100, 100_000])
    text = text.replace('"NESTED"', "[" * depth + "]" * depth)
    return text.encode()


# Paths: functions that replace the file by something that is no regular file.


def fifo(path, rng):
    path.unlink()
    os.mkfifo(path)


def device(path, rng):
    path.unlink()
    path.symlink_to(rng.choice(["/dev/zero", "/dev/full", "/dev/null", "/dev/tty"]))


def unix_socket(path, rng):
    path.unlink()
    here = os.open(
        path.parent, os.O_RDONLY
    )  # The length of a socket's path is limited.
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def folder(path, rng):
    path.unlink()
    path.mkdir()


def link(path, rng):
    path.unlink()
    path.symlink_to(rng.choice([path.name, "missing", ".", "/etc/passwd", "/proc/self/mem",
                                os.path.relpath("guard/secret.txt", path.parent)]))  # fmt: skip


def missing(path, rng):
    path.unlink()


PATHS = {f.__name__: f for f in (fifo, device, unix_socket, folder, link, missing)}


def on_bytes(change):
    """Returns a function of a path and a generator for a function of bytes."""
    return lambda path, rng: path.write_bytes(change(path.read_bytes(), rng))


BYTES = {f.__name__: on_bytes(f) for f in BYTE_CHANGES}
TEXT_CHANGES = (replace_token, edit_lines, encode_otherwise)
TEXT = {f.__name__: on_bytes(f) for f in TEXT_CHANGES}
JSON = {"edit_json": on_bytes(edit_json), "encode_otherwise": TEXT["encode_otherwise"]}


# Containers: their parts are damaged, and checksums are made to fit again. Otherwise the
# checksums would hide the code behind them.


def change_anything(content, rng, name=""):
    """Damages the content of a file by a grammar that fits its name."""
    if name.endswith(".json"):
        return edit_json(content, rng)
    return rng.choice(BYTE_CHANGES)(content or b"0", rng)


def change_member(path, rng):
    """Damages a member of a ZIP archive, or the list of members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice([*members])
    action = rng.randrange(8)
    if action == 0:
        del members[name]
    elif action == 1:
        members[rng.choice(["../../guard/pwned", "/pwned", f"{name}/x", "x" * 300])] = (
            b"1"
        )
    elif action == 2:
        members[name] = bytes(2**26)  # 64 MiB that take 64 KiB in the archive.
    else:
        members[name] = change_anything(members[name], rng, name)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def change_npy(path, rng):
    """Changes an array of an npz file, or the header that declares its shape."""
    arrays = dict(np.load(path))
    name = rng.choice([*arrays])
    buffer, array = io.BytesIO(), arrays[name]
    values = [
        array.astype("f2"), array.astype("U"), array.astype("c16"), array[..., None],
        array.ravel()[:1], array.ravel()[:0], np.full(array.shape, np.nan, "f4"),
    ]  # fmt: skip
    np.save(buffer, rng.choice(values))
    content = buffer.getvalue()
    if rng.random() < 0.5:  # The header is text of a fixed length.
        shape = str(
            rng.choice([(2**40,), (2**20, 2**20, 2**20), (-1,), (0,), (10**30,)])
        )
        dtype = rng.choice(["<f4", "|O", "|V8", "<U999999999", "|b1", ">f8", "<M8[s]"])
        text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
        content = (
            b"\x93NUMPY\x01\x00v\x00" + text.ljust(117).encode() + b"\n" + content[128:]
        )
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[f"{name}.npy"] = content
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def change_safetensors(path, rng):
    """Changes the JSON header of a safetensors file, whose length stays right."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = edit_json(content[8 : 8 + size], rng)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def change_hdf5(path, rng):
    """Changes a data set or an attribute of an HDF5 file."""
    with h5py.File(path, "r+") as file:
        datasets = []
        file.visititems(
            lambda n, v: datasets.append(n) if isinstance(v, h5py.Dataset) else None
        )
        name = rng.choice(datasets)
        array = file[name][()]
        action = rng.randrange(10)
        if action == 9:
            file.attrs[rng.choice([*file.attrs, "x"])] = rng.choice(
                ["x", 1, np.zeros(9)]
            )
            return
        del file[name]
        if action == 0:
            file[name] = h5py.ExternalLink(str(path.parent / SECRET), "/x")
        elif action == 1:
            file[name] = h5py.SoftLink(rng.choice(["/", f"/{name}", "/missing"]))
        elif action == 2:
            external = [(str((path.parent / SECRET).resolve()), 0, array.nbytes)]
            file.create_dataset(name, array.shape, array.dtype, external=external)
        elif action == 3:
            layout = h5py.VirtualLayout(array.shape, array.dtype)
            source = h5py.VirtualSource(str(path.parent / SECRET), "x", array.shape)
            layout[...] = source
            file.create_virtual_dataset(name, layout)
        elif action == 4:
            file.create_dataset(name, (2**20,) * 3, "f4", chunks=(1, 1, 2**10))
        elif action == 5:
            file.create_group(name)
        elif action == 6:
            file[name] = np.full(array.shape, rng.choice([np.nan, np.inf]), array.dtype)
        elif action == 7:
            file[name] = rng.choice([np.array(b"text"), array.astype("f2")[..., None]])
        # Otherwise the data set is missing.


def change_hashed(path, rng):
    """Damages a file of a bundle and notes its new hash in the manifest."""
    content, manifest = path.read_bytes(), path.parent / "manifest.json"
    damaged = change_anything(content, rng)
    path.write_bytes(damaged)
    text = manifest.read_text()
    for old, new in (
        (hashlib.sha256(content).hexdigest(), hashlib.sha256(damaged).hexdigest()),
        (f'"bytes": {len(content)}', f'"bytes": {len(damaged)}'),
    ):
        assert old in text
        text = text.replace(old, new)
    manifest.write_text(text)


def change_record(path, rng):
    """Damages a record of a TFRecord file, whose checksums fit."""
    import tensorflow as tf

    records = [r.numpy() for r in tf.data.TFRecordDataset(str(path))]
    index = rng.randrange(len(records))
    example = tf.train.Example.FromString(records[index])
    features = example.features.feature
    name = rng.choice([*features])
    action = rng.randrange(5)
    if action == 0:
        del features[name]
    elif action == 1:
        values = [-1, 10, 2**31, 2 * 10**9, -(2**63), 2**63 - 1]
        features["image/class/label"].int64_list.value[:] = [rng.choice(values)]
    elif action == 2:
        features[name].bytes_list.value[:] = [
            rng.choice(TEXTS).encode("utf-8", "replace")
        ]
    elif action == 3:
        image = features["image/encoded"].bytes_list
        image.value[:] = [change_anything(image.value[0], rng)]
    content = example.SerializeToString()
    records[index] = content if action < 4 else change_anything(content, rng)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def change_tree(path, rng):
    """Renames, adds or links class folders of a dataset; `path` is one of its images."""
    class_folder, dataset = path.parent, path.parent.parent
    names = [
        n[:200].replace("/", "|").replace("\0", "") for n in TEXTS if n.isprintable()
    ]
    names = [
        *names[1:],
        "\x1b[31mred",
        "a\nb",
        "=1+1",
        os.fsdecode(b"\xff\xfe"),
        ".hidden",
    ]
    action = rng.randrange(6)
    if action == 0:
        class_folder.rename(dataset / rng.choice(names))
    elif action == 1:
        path.rename(class_folder / f"{rng.choice(names)}.png")
    elif action == 2:
        (class_folder / "again").symlink_to(rng.choice(["..", ".", "/"]))
    elif action == 3:
        (dataset / rng.choice(names)).mkdir()
    elif action == 4:
        (dataset / "other").symlink_to("/dev")
    else:
        shutil.rmtree(class_folder)
        class_folder.touch()
