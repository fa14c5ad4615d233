"""Long measurements in cells: a cell is a folder that is there once it is complete, so one may stop and take up."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from diptych.bench.completions import ServerApi
from diptych.bench.measure import Bench, Method
from diptych.bench.record import RESULT, Recorder, TargetFacts, new_result
from diptych.bench.target import ApiOptions, Target
from diptych.core.errors import DiptychError
from harness.lines import Lines

START_TIMEOUT_S = 300.0
EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def exit_status(measure: Callable[[], None]) -> int:
    """Measure; return the exit status. An error of ours is one line, and Ctrl-C ends what was started."""
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background shells have the first ignored
        signal.signal(number, signal.default_int_handler)
    try:
        measure()
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("stopped; what was complete is kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def is_complete(folder: Path) -> bool:
    """Tell whether a cell has been measured."""
    return (folder / RESULT).exists()


@asynccontextmanager
async def measured_cell(  # noqa: PLR0913, PLR0917  what a cell is
    folder: Path, program: str, target: Target, method: Method, workload: str, settings: dict[str, Any], title: str
) -> AsyncIterator[tuple[Bench, ServerApi]]:
    """Start a server and measure it; what is measured is in `folder` when the body has ended without an error.

    `settings` are kept as they are then.
    """
    # Elsewhere until it is complete: what is there is not measured again.
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    facts = TargetFacts(target.name, target.description)
    recorder = Recorder(part, new_result(program, settings, workload, list(method.slos), [facts]))
    async with target.serving(ApiOptions(), START_TIMEOUT_S) as api:
        recorder.on_model(target.name, api.model)
        yield Bench(method, recorder, Lines(title)), api
    recorder.result.is_complete = True
    recorder.save()
    part.rename(folder)
