"""A program of its own: packets from its standard input to a network address, without touching a picture.

It is a process and no thread because PyAV connects and hangs up with Python's lock held: a host that does not answer
would stop every thread there is. The first line of its input says where to, the rest is a NUT stream. It prints
``connected`` when it is, and what went wrong. The address is not among its arguments, where every user could read it.
"""

from __future__ import annotations

import json
import sys

import av


def main() -> int:
    """Relay until the input ends; 1 if the connection cannot be made, or is lost."""
    with open(0, "rb", buffering=0, closefd=False) as pipe:
        order = json.loads(pipe.readline())
        try:
            # no probing beyond the first packet: it would have to be waited for
            source = av.open(pipe, "r", format="nut", options={"probesize": "32", "analyzeduration": "0"})
            target = av.open(order["url"], "w", format=order["muxer"], container_options=order["options"])
            stream = target.add_stream_from_template(source.streams.video[0], opaque=True)
            target.start_encoding()
            for index, packet in enumerate(source.demux(source.streams.video[0])):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
                if index == 0:  # some addresses show that they are none when they are written to
                    print("connected", flush=True)
            target.close()
        except (av.FFmpegError, OSError, ValueError) as error:
            print(getattr(error, "strerror", None) or error, flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
