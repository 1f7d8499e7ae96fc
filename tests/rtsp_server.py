"""GStreamer's RTSP server with a test picture in H.264, for /usr/bin/python3, where its bindings are.

    /usr/bin/python3 tests/rtsp_server.py PORT [WIDTH HEIGHT]      serves rtsp://127.0.0.1:PORT/live until killed

Prints a line once it listens.
"""

from __future__ import annotations

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 (the versions come first)

PIPELINE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width={},height={},framerate=25/1"
    " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! rtph264pay name=pay0 pt=96 )"
)


def main() -> None:
    """Serve until killed."""
    port, *size = sys.argv[1:]
    Gst.init(None)
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(port)
    media = GstRtspServer.RTSPMediaFactory.new()
    media.set_launch(PIPELINE.format(*(size or ("320", "240"))))
    media.set_shared(True)
    server.get_mount_points().add_factory("/live", media)
    if not server.attach(None):
        sys.exit(f"cannot listen on port {port}")
    print("listening", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
