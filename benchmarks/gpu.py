"""Everything that needs a GPU, in one command: build, test, measure, draw. ``gpu.sh`` is its name for people.

    benchmarks/gpu.sh --output FOLDER [--minutes 9] [--only kernels latency …] [--rehearse]

Parts, in this order: the native library for this GPU alone; kernels against float64 and against torch; latency of the
models; a frame's whole way; the tests that need a GPU and compute-sanitizer, which measure no time, at once; compilers.
Each is a process of its own and leaves its figures as it gets them, so a part that fails or is out of time loses
nothing but what it had not measured; only a library that does not build ends it all. FOLDER gets gpu.json (rewritten
after each part), log.txt and two plots. ``--rehearse`` runs the same on a CPU with tiny sizes. The last line is JSON:
what was done, what failed, and the bars.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from gpu_report import bars, plot

HERE = Path(__file__).parent
ROOT = HERE.parent
GRACE_S = 20  # for a part to end what it had begun in time
LIBRARY = "libmcdrl_rt_native.so"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
USUAL_MINUTES = 9
_ENDED = re.compile(r"\b(PASSED|FAILED|ERROR)\b")  # before a test's name, or after it
_TEST = re.compile(r"\S+\.py(::\S+)?")
AT_ONCE = ("tests", "sanitizer")  # parts that measure no time


class Ended(NamedTuple):
    """How a command ended."""

    status: int | None  # None: stopped for time
    output: str

    @property
    def reason(self) -> str:
        """Why it did not end well: the time, or its last words."""
        words = next((line for line in reversed(self.output.splitlines()) if line.strip()), "")
        return "out of time" if self.status is None else f"status {self.status}: {words.strip()[:200]}"


class Benchmark:
    """One run of all parts.

    Args:
        output: folder for the results.
        minutes: nothing new is begun after so long.
        rehearse: on a CPU, tiny.
    """

    def __init__(self, output: Path, minutes: float, rehearse: bool) -> None:
        self.output, self.rehearse, self.until = output, rehearse, time.time() + 60 * minutes
        self.share = min(1.0, minutes / USUAL_MINUTES)
        self.parts: dict[str, Any] = {}
        self.status: dict[str, str] = {}
        self.machine: dict[str, Any] = {}
        self.scratch = Path(tempfile.mkdtemp(prefix="mcdrl-gpu-"))
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}

    def run(self, only: list[str]) -> dict[str, Any]:
        """All parts, or those named; returns the summary."""
        plan = self.plan()
        waiting = [name for name in plan if not only or name in only]
        while waiting:
            now = [name for name in waiting if name in AT_ONCE] if waiting[0] in AT_ONCE else waiting[:1]
            waiting = [name for name in waiting if name not in now]
            with ThreadPoolExecutor(len(now)) as pool:
                list(pool.map(lambda name: self.part(name, self.seconds(name, plan[name][0]), plan[name][1]), now))
            self.save()
            if self.status.get("build", "").startswith("failed"):
                break  # what comes after it would be measured of something else
        self.draw()
        shutil.rmtree(self.scratch, ignore_errors=True)
        return self.save()

    def seconds(self, name: str, usual: float) -> float:
        """What a part may take of this run; compiling takes what it takes."""
        return usual if name == "build" else usual * self.share

    def part(self, name: str, seconds: float, work: Callable[[float], str]) -> None:
        """One part, for so long at most when time is short."""
        began = time.time()
        if began > self.until:
            self.status[name] = "left out: no time"
        else:
            try:
                self.status[name] = work(min(self.until, began + seconds))
            except Exception as error:  # a part's own fault must not end the others
                self.status[name] = f"failed: {type(error).__name__}: {error}"
        print(f"{name:<10} {time.time() - began:6.1f} s  {self.status[name]}", flush=True)

    def plan(self) -> dict[str, tuple[float, Callable[[float], str]]]:
        """Parts in order: seconds each may take of the usual nine minutes, and what it does until a moment."""
        return {
            "build": (150, self.build),
            "kernels": (60, lambda until: self.program("kernels", until)),
            "latency": (170, lambda until: self.program("latency", until)),
            "path": (40, lambda until: self.program("path", until)),
            "tests": (100, self.tests),
            "sanitizer": (100, self.sanitizer),
            "compiled": (400, lambda until: self.program("compiled", until)),
        }

    def save(self) -> dict[str, Any]:
        """Write what there is; returns the summary in it."""
        failed = [name for name, status in self.status.items() if status != "done"]
        summary = {"benchmark": "gpu", "rehearsal": self.rehearse, "status": self.status, "failed": failed}
        # tiny sizes on a CPU meet no bar and miss none
        summary |= {"bars": {} if self.rehearse else bars(self.parts), "machine": self.machine}
        partial = self.output / ".gpu.json.partial"
        partial.write_text(json.dumps({"summary": summary, "parts": self.parts}, indent=1) + "\n")
        partial.replace(self.output / "gpu.json")
        return summary

    def draw(self) -> None:
        """Plots of what there is."""
        try:
            plot(self.parts, self.output)
        except Exception as error:
            self.status["plots"] = f"failed: {type(error).__name__}: {error}"

    # --- parts -------------------------------------------------------------------------------------------------

    def build(self, until: float) -> str:
        """The native library for this machine's GPU; a rehearsal only has CMake look at it."""
        if shutil.which("cmake") is None or shutil.which("nvcc") is None:
            return "left out: needs cmake and nvcc"
        folder = self.scratch / "build"
        architecture = "90" if self.rehearse else "native"
        configure = ["cmake", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-DCMAKE_CUDA_ARCHITECTURES={architecture}", *(["-G", "Ninja"] if shutil.which("ninja") else [])]
        ended = self.call(configure, until)
        if ended.status == 0 and not self.rehearse:
            ended = self.call(["cmake", "--build", folder, "--parallel", "8"], until)
            self.environment["MCDRL_NATIVE_LIBRARY"] = str(folder / LIBRARY)
            self.parts["build"] = {"library": (folder / LIBRARY).is_file()}
            return "done" if ended.status == 0 and (folder / LIBRARY).is_file() else f"failed: {ended.reason}"
        return "done" if ended.status == 0 else f"failed: {ended.reason}"

    def program(self, name: str, until: float) -> str:
        """A part that is a program of this folder."""
        result = self.scratch / f"{name}.json"
        command = [sys.executable, HERE / f"gpu_{name}.py", "--result", result, "--until", until]
        ended = self.call([*command, *(["--rehearse"] if self.rehearse else [])], until)
        if not result.is_file():
            return f"failed: {ended.reason}"
        values = json.loads(result.read_text())
        self.machine = values.pop("machine", self.machine)
        self.parts[name] = values
        if ended.status != 0:
            return f"failed after some figures: {ended.reason}"
        errors, left_out = values.get("errors", {}), values.get("left_out", [])
        ends = [f"failed in part: {', '.join(errors)}"] if errors else []
        ends += [f"left out for time: {'; '.join(left_out)}"] if left_out else []
        return ", and ".join(ends) or "done"

    def tests(self, until: float) -> str:
        """The tests that need a GPU, none to be skipped but for want of TensorRT; a rehearsal only collects them.

        Each is told as it ends, so a run that is stopped still says how far it came.
        """
        files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
        # a deprecation in another torch says nothing of the GPU, so warnings are not errors here
        command = [sys.executable, "-m", "pytest", "-m", "gpu and not slow", "-W", "default", "-p", "no:cacheprovider"]
        command += ["-vv", "-rfEs"]
        command += ["--continue-on-collection-errors", "--tb=short", *files]
        command += ["--collect-only"] if self.rehearse else []
        command += ["-n", "8"] if find_spec("xdist") and not self.rehearse else []
        required = {} if self.rehearse else {"MCDRL_REQUIRE_GPU": "1"}
        ended = self.call(command, until, required)
        lines = ended.output.splitlines()
        self.parts["tests"] = judged(lines, ended.status) | ({"passed": None} if self.rehearse else {})
        if not self.rehearse and self.parts["tests"]["skipped"]:
            return "done, but some were skipped"
        return "done" if ended.status == 0 else f"failed: {ended.reason}"

    def sanitizer(self, until: float) -> str:
        """compute-sanitizer's tools over the kernels; a rehearsal runs the program without it."""
        program = [sys.executable, HERE / "gpu_sanitize.py", "cpu" if self.rehearse else "cuda"]
        if self.rehearse:
            ended = self.call(program, until)
            return "done" if ended.status == 0 else f"failed: {ended.reason}"
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            return "left out: no compute-sanitizer"

        def watch(name: str) -> str:
            # without torch's cache every tensor is an allocation of its own, and its end is watched
            plain = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            ended = self.call([tool, "--tool", name, "--error-exitcode", "9", *program], until, plain)
            return "clean" if ended.status == 0 else ended.reason

        with ThreadPoolExecutor(len(TOOLS)) as pool:
            found = dict(zip(TOOLS, pool.map(watch, TOOLS), strict=True))
        clean = all(found.get(name) == "clean" for name in TOOLS[:3])
        # torch's own kernels may read what they pad with: initcheck is told, not judged
        self.parts["sanitizer"] = {"clean": clean, "tools": found}
        return "done" if clean else f"failed: {found}"

    # --- processes -----------------------------------------------------------------------------------------------

    def call(self, command: list[Any], until: float, extra: dict[str, str] | None = None) -> Ended:
        """Run a command to its end, or until some time after ``until``; its output goes to the log."""
        words = [str(word) for word in command]
        with tempfile.TemporaryFile("w+", dir=self.scratch, encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                words, cwd=ROOT, env=self.environment | (extra or {}), stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(max(1.0, until + GRACE_S - time.time()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # compilers have children
                process.wait()
                status = None
            output.seek(0)
            ended = Ended(status, output.read())
        with (self.output / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(words)}\n{ended.output}\n")
        return ended


def judged(lines: list[str], status: int | None) -> dict[str, Any]:
    """What pytest said of the tests one by one, by how they ended; whether all passed, None where they were stopped."""
    ends: dict[str, set[str]] = {"PASSED": set(), "FAILED": set(), "ERROR": set()}
    for line in lines:
        word, name = _ENDED.search(line), _TEST.search(line)
        if word and name:
            ends[word[0]].add(name[0])
    failures = sorted(ends["FAILED"] | ends["ERROR"])
    # where there is no TensorRT its tests cannot be run; all others must
    skipped = [line for line in lines if line.startswith("SKIPPED") and "TensorRT" not in line]
    good = status == 0 and not skipped
    return {
        "passed": None if status is None and not failures else good,
        "summary": lines[-1:],
        "count": len(ends["PASSED"]),
        "failures": failures,
        "skipped": skipped,
    }


def missing() -> list[str]:
    """The packages that are needed and are not there: better told before anything is built."""
    ours = ("torch", "timm", "open_clip", "ftfy", "safetensors", "onnx", "onnxscript", "cv2", "platformdirs")
    return [name for name in (*ours, "pytest", "hypothesis") if find_spec(name) is None]


def main() -> None:
    """Run, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results, from the repository's root")
    parser.add_argument("--minutes", type=float, default=USUAL_MINUTES, help="begin nothing new after so long")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny sizes: does it run at all?")
    given = parser.parse_args()
    if absent := missing():
        parser.error(f"not installed: {', '.join(absent)}")
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "log.txt").write_text("")
    summary = Benchmark(given.output, given.minutes, given.rehearse).run(given.only)
    for what, bar in summary["bars"].items():
        mark = {True: "met", False: "NOT MET", None: "not measured"}[bar["met"]]
        print(f"  {mark:<13} {what}: {bar['value']} ({bar['bar']})")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
