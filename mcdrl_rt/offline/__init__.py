"""Recorded procedures: whole archives, each procedure exactly once, whatever interrupts the work.

A procedure is worked on in segments. Each is finished by itself, in the folder ``NAME.parts``, and the manifest there
says which are done; in the end they are joined, and ``NAME.summary.json`` says that the procedure is done. Who starts
the same job again goes on where it was stopped, and gets what he would have got at once. What was made by another
engine, with other settings, or of another file is never mixed with it, nor do two jobs work in one folder.

``NAME.annotated.mp4`` is for people. ``NAME.labels.mkv`` (FFV1, lossless, grey) holds the class id of every pixel,
0 for background. Results lie under the output folder as a folder's videos lie in it. H.264 takes
even sizes only, so an annotated video of odd size has one more row or column than its labels. One input that cannot
be read does not stop the others.

    >>> jobs = plan(["archive/"], Path("results"))                          # doctest: +SKIP
    >>> for outcome in process(jobs, Path("results"), segmenter):           # doctest: +SKIP
    ...     outcome.job.source, outcome.summary, outcome.error              # doctest: +SKIP
"""

from mcdrl_rt.offline.archive import Outcome, process
from mcdrl_rt.offline.fingerprint import engine_facts
from mcdrl_rt.offline.hands import Hands, Here, Loader, Processes, worker_count
from mcdrl_rt.offline.plan import Job, make_folder, plan
from mcdrl_rt.offline.privacy import pseudonym
from mcdrl_rt.offline.remote import Store, is_remote
from mcdrl_rt.offline.settings import Settings

__all__ = [
    "Hands",
    "Here",
    "Job",
    "Loader",
    "Outcome",
    "Processes",
    "Settings",
    "Store",
    "engine_facts",
    "is_remote",
    "make_folder",
    "plan",
    "process",
    "pseudonym",
    "worker_count",
]
