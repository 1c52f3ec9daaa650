"""A model of a disk that loses power, for tests.

`Recorder` follows all changes of a folder in this process and saves, before each change,
the folders that a power failure at that moment could leave.
"""

import hashlib
import os
import pathlib
import shutil
import sys

CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir")


class Recorder:
    """Saves the states that a folder would have after a power failure.

    Without a flush, a file has no content after a power failure, and new, renamed and
    removed names in a folder may have reached the disk or not.

    Args:
        root: Existing empty folder. All changes in it are followed.
        target: Folder for the states. Each differs from the others and is a copy of
            `root` with a name such as `012-flushed`: the number of changes before the
            power failure, and what reached the disk.
    """

    def __init__(self, root, target):
        self.root, self.target = pathlib.Path(root), pathlib.Path(target)
        self.num_changes, self._digests, self._is_saving = 0, set(), False
        # By inode. `_handles` keep the inodes of removed files from being used again.
        self._contents, self._entries, self._handles = {}, {}, {}

    def start(self):
        original_fsync = os.fsync

        def fsync(descriptor):
            self._save_states("fsync")
            original_fsync(descriptor)
            self._flush(os.readlink(f"/proc/self/fd/{descriptor}"))

        os.fsync = fsync
        sys.addaudithook(self._hook)

    def _hook(self, event, args):
        is_change = event in CHANGES
        if event == "open" and isinstance(args[0], str):
            is_writing = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            is_change = is_writing and os.path.abspath(args[0]).startswith(
                str(self.root)
            )
        if is_change and not self._is_saving:
            self._save_states(event)

    def _flush(self, path):
        path = pathlib.Path(path)
        if self.root not in (path, *path.parents):
            return
        self._is_saving = True
        if path.is_dir():
            self._entries[path.stat().st_ino] = self._list_entries(path)
        else:
            self._contents[path.stat().st_ino] = path.read_bytes()
        self._is_saving = False

    def _list_entries(self, folder):
        """Returns a dict from names to inodes."""
        entries = {path.name: path.stat().st_ino for path in folder.iterdir()}
        for name, inode in entries.items():
            if inode not in self._handles:
                self._handles[inode] = os.open(folder / name, os.O_RDONLY)
        return entries

    def _save_states(self, event):
        self._is_saving = True
        folders, contents = {}, {}
        for path in (self.root, *self.root.glob("**/*")):
            if path.is_dir():
                folders[path.stat().st_ino] = self._list_entries(path)
            else:
                contents[path.stat().st_ino] = path.read_bytes()
        flushed = {
            inode: content
            for inode, content in self._contents.items()
            if contents.get(inode, content) == content
        }
        remaining = {
            # A name that was replaced is not missing at any moment.
            inode: {k: v for k, v in entries.items() if k in folders.get(inode, {})}
            for inode, entries in self._entries.items()
        }
        folder_inodes = {*folders, *self._entries}
        for name, entries, known_contents in (
            ("flushed", self._entries, flushed),
            ("named", folders, flushed),
            ("removed", remaining, flushed),
            ("killed", folders, contents),
        ):
            state = {}
            self._collect(state, "", self.root.stat().st_ino, entries, folder_inodes)
            state = {
                path: None if inode in folder_inodes else known_contents.get(inode, b"")
                for path, inode in state.items()
            }
            self._save(f"{self.num_changes:03}-{name}", state)
        self.num_changes += 1
        self._is_saving = False

    def _collect(self, state, prefix, inode, entries, folder_inodes):
        for name, child in entries.get(inode, {}).items():
            state[f"{prefix}{name}"] = child
            if child in folder_inodes:
                self._collect(state, f"{prefix}{name}/", child, entries, folder_inodes)

    def _save(self, name, state):
        hash_content = lambda content: content and hashlib.sha256(content).digest()  # noqa: E731
        digest = frozenset((k, hash_content(v)) for k, v in state.items())
        if digest in self._digests:
            return
        self._digests.add(digest)
        folder = self.target / name
        folder.mkdir(parents=True)
        for path, content in state.items():  # Folders come before their files.
            if content is None:
                (folder / path).mkdir()
            else:
                (folder / path).write_bytes(content)


def copy_state(state, folder):
    """Replaces a folder by a copy of a saved state."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(state, folder)
