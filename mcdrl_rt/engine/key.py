"""Keys of this user's, made on first use: what only he can sign, or only he can tell."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from mcdrl_rt.errors import EngineError
from mcdrl_rt.folders import state_folder

_BYTES = 32


def user_key(name: str, purpose: str, create: bool = True) -> bytes | None:
    """A key in the user's state folder (``MCDRL_STATE``); None if there is none and none is to be made.

    Args:
        name: of the key.
        purpose: "the key that … " in messages.
        create: make one where there is none.

    Raises:
        EngineError: it can be neither read nor made.
    """
    path = state_folder() / f"{name}.key"
    try:
        if not path.exists():
            if not create:
                return None
            _make(path)
        key = path.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot keep the key that {purpose} in {path}: {error.strerror}; set MCDRL_STATE") from error
    if len(key) != _BYTES:
        raise EngineError(f"the key that {purpose} is damaged; delete {path}")
    return key


def _make(path: Path) -> None:
    """Write a new key, readable by its user alone; of two processes that do so at once, one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(name, path)  # unlike a rename, never replaces a key
    finally:
        os.unlink(name)
