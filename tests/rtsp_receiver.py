"""An RTSP server that takes one stream in record mode and says how many frames came; for the system's Python."""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
factory.set_launch("( rtph264depay name=depay0 ! h264parse ! fakesink name=end signal-handoffs=true )")
frames = 0


def count(*_: object) -> None:
    """Say of every frame that it came."""
    global frames
    frames += 1
    print(frames, flush=True)


def watch(_: object, media: GstRtspServer.RTSPMedia) -> None:
    """Listen to a stream's end."""
    media.get_element().get_by_name("end").connect("handoff", count)


factory.connect("media-configure", watch)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print("listening", flush=True)
GLib.MainLoop().run()
