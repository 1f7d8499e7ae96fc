"""The runtimes, and how a model gets into them."""

import sys

# OpenVINO's converter reports its use to a server, from a process of its own, if it finds this package
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
