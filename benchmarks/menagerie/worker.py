"""One process of the zoo: it takes models one at a time from a pipe, and is expendable."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection


@dataclass(frozen=True, order=True)
class Job:
    """One architecture at one depth."""

    library: str
    depth: str  # "plan" or "full"
    name: str
    family: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.library, self.depth, self.name


def _be_quiet() -> None:
    """Send standard output nowhere, which models and the solver's C++ print to: the parent shows progress there."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.close(sink)


def serve(pipe: Connection, library: str) -> None:
    """Import a library, say ``("ready", …)``, and check what comes through the pipe until None does.

    While a job runs, ``("stage", name)`` tells what is being done; ``("row", {...})`` ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    _be_quiet()
    os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from torchvision_ops import declare_missing_ops

    declare_missing_ops()  # timm and transformers import torchvision, too
    from menagerie import catalogue
    from menagerie.checks import check_full
    from menagerie.planning import check_plan

    entries = catalogue(library)
    pipe.send(("ready", library))
    while (job := pipe.recv()) is not None:
        start = time.perf_counter()
        entry = entries[job.name]
        check = check_plan if job.depth == "plan" else check_full
        row = check(entry, lambda stage: pipe.send(("stage", stage)))
        pipe.send(("row", row | {"seconds": round(time.perf_counter() - start, 2)}))
        gc.collect()
