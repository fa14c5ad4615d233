"""The frame around every benchmark: flags in, progress on the terminal, findings and raw samples out."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from diptych.core.errors import DiptychError
from diptych.hardware.host import host_facts, software_versions
from harness.options import OptionsKind, parse_options
from harness.result import Finding, Result, save_result

LOG_COLUMNS = 160
"""Width of the table where stdout is no terminal."""
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


class ProgressBar:
    """How far a benchmark is. `expect` says how many parts there will be, `part` wraps one."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=None)

    def expect(self, num_parts: int) -> None:
        """Set how many parts there will be in all."""
        self._progress.update(self._task, total=num_parts)

    @contextmanager
    def part(self, text: str) -> Iterator[None]:
        """Show `text` while the body runs, then count one part."""
        self._progress.update(self._task, description=text)
        yield
        self._progress.advance(self._task)


@dataclass
class Outcome:
    """What a benchmark measured."""

    findings: list[Finding]
    samples: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    """Lines to print below the table."""
    plot: Callable[[Path], None] | None = None
    """Draws a PNG at the given path; called if matplotlib is installed."""


def run_program(
    name: str,
    kind: type[OptionsKind],
    description: str | None,
    measure: Callable[[OptionsKind, ProgressBar], Outcome],
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse flags, measure, print, write NAME.json (and NAME.png). An error of ours ends as one line, exit status 1."""
    options = parse_options(kind, description or "", arguments)
    console = Console(stderr=True)
    try:
        _run(name, options, measure, console)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _run(
    name: str, options: OptionsKind, measure: Callable[[OptionsKind, ProgressBar], Outcome], console: Console
) -> None:
    host, begin_s, started_at = host_facts(), time.monotonic(), datetime.now(UTC)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        outcome = measure(options, ProgressBar(progress, name))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    result = Result(
        benchmark=name,
        started_at=started_at.isoformat(timespec="seconds"),
        duration_s=time.monotonic() - begin_s,
        seed=options.seed,
        settings=settings,
        host=host,
        versions=software_versions(),
        findings=outcome.findings,
        samples=outcome.samples,
    )
    path = save_result(result, options.output)
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=LOG_COLUMNS)).print(_table(result.findings))
    for note in outcome.notes:
        print(note)
    print(f"raw samples: {path}")
    if outcome.plot is not None:
        _draw(outcome.plot, path.with_suffix(".png"))


def _draw(plot: Callable[[Path], None], path: Path) -> None:
    try:
        plot(path)
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed; pip install 'diptych[bench]' if you want it")
    else:
        print(f"plot: {path}")


def _table(findings: list[Finding]) -> Table:
    table = Table("what", "target", "measured (95 % interval)", "verdict", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(finding.what, finding.target_text, finding.measured_text, finding.verdict)
    return table
