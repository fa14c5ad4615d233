"""The report as one HTML file that needs nothing else: it can be mailed, archived and read without a network."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from diptych.bench.record import RESULT, SAMPLES, Result
from diptych.bench.report.words import RUN_HEADINGS, definition, goodput_rows, run_rows, slo_text, verdicts, warnings
from diptych.core.whole_file import write_whole

PAGE = "report.html"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .2rem .6rem; border-bottom: 1px solid #ddd; }
th { text-align: left; } td { font-variant-numeric: tabular-nums; }
.verdict { font-size: 1.1rem; } .warning { background: #fff3cd; padding: .4rem .8rem; }
img { max-width: 100%; } .scroll { overflow-x: auto; } code { background: #f4f4f4; padding: 0 .2rem; }
@media (prefers-color-scheme: dark) {
  body { background: #181a1b; color: #ddd; } td, th { border-color: #444; } code { background: #2a2d2e; }
  .warning { background: #554a1d; } img { background: #fff; }
}
"""


def write_page(result: Result, folder: Path, figures: Sequence[Path]) -> Path:
    """Write `folder`/report.html and return its path. Raises: OSError; then no half a page is left."""
    headings = [*RUN_HEADINGS, *(slo_text(slo) for slo in result.slos)]
    parts = [
        f"<h1>{escape(result.command)}: {escape(result.workload)}</h1>",
        *(f'<p class="warning">{escape(text)}</p>' for text in warnings(result)),
        *(f'<p class="verdict">{escape(text)}</p>' for text in verdicts(result)),
    ]
    if result.sweeps:
        parts += [
            "<h2>Goodput</h2>",
            _table(("server", "SLO", "goodput", "brackets", "over the last server"), goodput_rows(result)),
            f"<p>{escape(definition())}</p>",
        ]
    parts += [_image(path) for path in figures]
    parts += ["<h2>Runs</h2>", _table(headings, run_rows(result)), "<h2>How it was measured</h2>"]
    parts += [_table(("what", "value"), _facts(result))]
    body = "\n".join(parts)
    title = escape(f"diptych bench: {result.workload}")
    head = f'<meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width">'
    style = f"<style>{STYLE}</style>"
    page = f'<!doctype html>\n<html lang="en"><head>{head}{style}</head>\n<body>\n{body}\n</body></html>\n'
    path = folder / PAGE
    write_whole(path, page.encode())
    return path


def _table(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _image(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,{content}"></p>'


def _facts(result: Result) -> Iterable[list[str]]:
    host = result.host
    yield ["started", result.started_at]
    for facts in result.targets:
        yield [facts.name, f"{facts.description} (model {facts.model or 'unknown'})"]
    for name, value in result.settings.items():
        yield [name, str(value)]
    cores = f"{len(host.allowed_cores)} of {host.num_cores} cores"
    yield ["machine", f"{host.cpu_model}, {cores}, {host.memory_bytes / 1e9:.0f} GB, Linux {host.kernel}"]
    yield ["vector instructions", ", ".join(host.vector_flags)]
    yield ["versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())]
    yield ["raw data", f"{RESULT} and {SAMPLES} beside this page"]
