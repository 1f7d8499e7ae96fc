#!/bin/sh
# Everything that needs a GPU, in one command: benchmarks/gpu.sh --output FOLDER [--minutes 9]
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
