"""The command line: arguments to one call, errors to one line.

Exit status: 0 done, 1 an error of ours, 2 wrong usage, 130 ended by Ctrl-C before it was ready.
"""

import errno
import sys
from typing import Annotated

import typer

from diptych import __version__
from diptych.cli.bench import bench_app
from diptych.cli.cache import cache_app
from diptych.cli.calibrate import calibrate_command
from diptych.cli.cluster import cluster_app
from diptych.cli.key import key_app
from diptych.cli.keys import keys_command
from diptych.cli.model import model_app
from diptych.cli.plan import plan_command
from diptych.cli.profile import profile_command
from diptych.cli.serve import serve_command
from diptych.cli.simulate import simulate_command
from diptych.cli.status import status_command
from diptych.cli.top import top_command
from diptych.cli.worker import worker_command
from diptych.cli.workers import drain_command, restart_command
from diptych.core.errors import DiptychError
from diptych.core.streams import (
    occupy_standard_descriptors,
    take_stdout_error,
    use_unfailing_stderr,
    use_unfailing_stdout,
)

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve large language models with prefill and decode on separate workers.",
    epilog="Start with `diptych serve`, then talk to http://127.0.0.1:8000/v1 with any OpenAI client.",
)
app.command("serve")(serve_command)
app.command("worker")(worker_command)
app.command("keys")(keys_command)
app.command("calibrate")(calibrate_command)
app.command("simulate")(simulate_command)
app.command("plan")(plan_command)
app.command("status")(status_command)
app.command("top")(top_command)
app.command("profile")(profile_command)
app.command("drain")(drain_command)
app.command("restart")(restart_command)
app.add_typer(bench_app, name="bench")
app.add_typer(cache_app, name="cache")
app.add_typer(cluster_app, name="cluster")
app.add_typer(key_app, name="key")
app.add_typer(model_app, name="model")


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"diptych {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run `diptych`; every error of ours ends as one line on stderr, and so does a stdout that takes nothing."""
    occupy_standard_descriptors()
    use_unfailing_stderr()
    use_unfailing_stdout()
    status: int | str | None = 0
    try:
        app()
    except DiptychError as error:
        status = _complain(str(error))
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except SystemExit as end:
        status = end.code
    lost = take_stdout_error()
    if lost is not None and lost.errno == errno.EPIPE:
        status = EXIT_ERROR  # as with `| head`: whoever was reading has seen enough
    elif lost is not None:
        status = _complain(f"cannot write to standard output: {lost.strerror}")
    sys.exit(status)


def _complain(text: str) -> int:
    typer.echo(f"error: {text}", err=True)
    return EXIT_ERROR
