"""Models from a hub: has `hub_program` list and fetch, and words what can go wrong.

HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the other variables of huggingface_hub count as they do elsewhere.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from diptych.core.errors import ModelError
from diptych.models.child import Deadlines, Program, ProgramReport, python_program, run_program
from diptych.models.disk import folder_bytes, no_space, require_free_space
from diptych.models.hub_files import HubChoice, HubListing
from diptych.models.sources import HubSource
from diptych.models.workshop import Workshop

_LIST_DEADLINES = Deadlines(total_s=120.0)
_FETCH_DEADLINES = Deadlines(total_s=24 * 3600.0, idle_s=300.0)
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_NO_ROOM_KINDS = frozenset(f"errno {number}" for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def list_repository(source: HubSource, workshop: Workshop) -> HubListing:
    """Ask the hub what `source` holds.

    Raises: ModelError if the hub cannot be reached, refuses, or has no such repository or revision.
    """
    command = _hub_program("list", source.repository, source.revision or "")
    with workshop.progress.stage(f"asking {_endpoint()} for {source.text}") as update:
        program = Program(command, f"the question to {_endpoint()}", _LIST_DEADLINES, env=_QUIET)
        report = _run(program, source, on_bytes=update)
    if report.error is not None:
        raise _hub_error(report, source)
    return msgspec.json.decode(report.value, type=HubListing)


def fetch(source: HubSource, choice: HubChoice, folder: Path, workshop: Workshop) -> None:
    """Fetch the chosen files into `folder`, but not those that an earlier try got there whole.

    Raises: ModelError if the hub or the network fails on the way, or there is no room.
    """
    folder.mkdir(exist_ok=True)
    present_bytes = sum(file.size_bytes for file in choice.files if (folder / file.name).exists())
    require_free_space(folder, choice.needed_bytes - present_bytes)
    command = _hub_program(
        "fetch", source.repository, choice.commit, str(folder), *(file.name for file in choice.files)
    )
    program = Program(command, f"the download of {source.text}", _FETCH_DEADLINES, held_fd=workshop.lock_fd, env=_QUIET)
    with workshop.progress.stage(f"fetching {source.text} from {_endpoint()}", choice.size_bytes) as update:
        report = _run(
            program,
            source,
            measure_bytes=lambda: folder_bytes(folder),
            on_bytes=lambda num_bytes: update(min(num_bytes, choice.size_bytes)),
        )
    if report.kind in _NO_ROOM_KINDS:
        raise no_space(folder, choice.needed_bytes)
    if report.error is not None:
        raise _hub_error(report, source)


def _hub_program(*arguments: str) -> list[str]:
    return python_program("diptych.models.hub_program", *arguments)


def _run(
    program: Program,
    source: HubSource,
    *,
    on_bytes: Callable[[int], None],
    measure_bytes: Callable[[], int] = lambda: 0,
) -> ProgramReport:
    ended = run_program(program, measure_bytes=measure_bytes, on_bytes=on_bytes)
    try:
        return msgspec.json.decode(ended.stdout, type=ProgramReport)
    except msgspec.MsgspecError:
        raise ModelError(f"cannot fetch {source.text}: {ended.death or ended.last_words}") from None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _hub_error(report: ProgramReport, source: HubSource) -> ModelError:
    site, repository = _endpoint(), source.repository
    texts = {
        "GatedRepoError": f"{repository} is gated; accept its terms on {site}/{repository} and set HF_TOKEN",
        "RevisionNotFoundError": f"{repository} has no revision {source.revision or 'main'} on {site}",
        "RepositoryNotFoundError": f"no repository {repository} on {site}; check its name, or set HF_TOKEN if private",
        "OfflineModeIsEnabled": f"{source.text} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it",
        "http 401": f"{site} does not accept the token for {repository}; set HF_TOKEN to a valid one, or unset it",
        "http 403": f"{site} forbids access to {repository}; set HF_TOKEN to a token that may read it",
        "http 404": f"no repository {repository} on {site}; check its name",
        "http 429": f"{site} asks to slow down; try again in some minutes, or set HF_TOKEN",
        "network": f"cannot reach {site} for {source.text}; check network and proxy, or set HF_ENDPOINT to a mirror",
    }
    first_line = (report.error or "").strip().partition("\n")[0]
    return ModelError(texts.get(report.kind, f"cannot fetch {source.text} from {site}: {first_line}"))
