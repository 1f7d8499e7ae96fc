"""The folders of this user that things are kept in, on each system where programs should."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """``MCDRL_CACHE``, or this user's cache: what can be made again."""
    return Path(os.environ.get("MCDRL_CACHE") or platformdirs.user_cache_dir("mcdrl-rt"))


def state_folder() -> Path:
    """``MCDRL_STATE``, or this user's state: keys."""
    return Path(os.environ.get("MCDRL_STATE") or platformdirs.user_state_dir("mcdrl-rt"))
