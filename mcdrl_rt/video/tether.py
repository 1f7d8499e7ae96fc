"""A program of its own: becomes the command it is given, which does not outlive whoever feeds its input.

What waits for a call, or for a host's answer, does not read its input, and so would not notice that it has ended: a
``kill -9`` of this package's process would leave it behind, and its port taken.
"""

from __future__ import annotations

import os
import select
import signal
import sys

_END_MS = 3000  # for the last packets to leave


def main() -> None:
    """Run the command in this process's place, while another watches its input."""
    command, (gone, running) = os.getpid(), os.pipe()
    if not os.fork():
        os.close(running)
        _watch(command, gone)
        os._exit(0)
    os.set_inheritable(running, True)  # so that it is open for as long as the command runs
    os.execvp(sys.argv[1], sys.argv[1:])


def _watch(command: int, gone: int) -> None:
    """End the command a while after its input has ended; return once it is gone."""
    for stream in (1, 2):  # who reads what the command says waits for its end here, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    ended, either = select.poll(), select.poll()
    ended.register(gone, 0)  # that nobody writes any more is told of, whatever is asked for
    either.register(gone, 0)
    either.register(0, 0)
    either.poll()
    if not ended.poll(_END_MS):
        os.kill(command, signal.SIGKILL)


if __name__ == "__main__":
    main()
