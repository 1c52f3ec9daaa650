"""Random seeds for different purposes, derived from one seed."""

import hashlib


def derive_seed(seed: int, purpose: str) -> int:
    """Returns a seed from 0 to 2**63 - 1, for one purpose, such as `"shuffling"`.

    The seeds of two runs, or of two purposes in a run, have nothing in common. With
    `seed`, `seed + 1` and so on, one run would repeat random numbers of another run.
    """
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
