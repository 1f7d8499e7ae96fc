"""``mcdrl-rt``: where the command begins. What it can do is in ``commands.py``, which takes a moment to import."""

from __future__ import annotations

import signal


def main() -> None:
    """Entry point of the console script."""
    # until signals are heard, Ctrl-C ends the process: an exception would end an import instead, with a traceback
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mcdrl_rt.commands import run

    run()


if __name__ == "__main__":
    main()
