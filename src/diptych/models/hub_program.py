"""Program: asks a model hub what a repository holds (`list`), and fetches files of one commit (`fetch`).

A process of its own, so that the launcher never loads the hub's client, and so that a stalled transfer can be killed.
stdout carries one `ProgramReport`, everything else goes to stderr.
"""

import sys

import msgspec

from diptych.models.child import ProgramReport
from diptych.models.hub_files import HubFile, HubListing

_LIST_TIMEOUT_S = 30.0
_NUM_CONNECTIONS = 4


def _list(repository: str, revision: str) -> HubListing:
    from huggingface_hub import HfApi  # noqa: PLC0415  not to be loaded with this module

    info = HfApi().model_info(repository, revision=revision or None, files_metadata=True, timeout=_LIST_TIMEOUT_S)
    licenses = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    files = [HubFile(sibling.rfilename, sibling.size or 0) for sibling in info.siblings or []]
    return HubListing(commit=info.sha or revision, files=files, license=licenses[0] if licenses else None)


def _fetch(repository: str, commit: str, folder: str, names: list[str]) -> None:
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    # Patterns are globs; brackets are the one thing in a file name that would not stand for itself.
    patterns = [name.replace("[", "[[]") for name in names]
    snapshot_download(
        repository, revision=commit, allow_patterns=patterns, local_dir=folder, max_workers=_NUM_CONNECTIONS
    )


def _kind_of(error: BaseException) -> str:
    """Sort an error by its classes' names: the client changed its HTTP library twice, and each has its own tree."""
    names = [kind.__name__ for kind in type(error).__mro__]
    for kind in ("GatedRepoError", "RevisionNotFoundError", "RepositoryNotFoundError", "OfflineModeIsEnabled"):
        if kind in names:
            return kind
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"http {status}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"errno {error.errno}"
    if {"TransportError", "RequestException", "ConnectionError", "TimeoutError"} & set(names):
        return "network"
    return _kind_of(error.__cause__) if error.__cause__ is not None else "other"


def _run(action: str, arguments: list[str]) -> ProgramReport:
    try:
        if action == "list":
            return ProgramReport(value=msgspec.Raw(msgspec.json.encode(_list(*arguments))))
        repository, commit, folder, *names = arguments
        _fetch(repository, commit, folder, names)
    except Exception as error:  # process edge: the parent words what it hears
        return ProgramReport(error=f"{type(error).__name__}: {error}", kind=_kind_of(error))
    return ProgramReport()


def main() -> None:
    """Do what the first argument says with the others."""
    sys.stdout.buffer.write(msgspec.json.encode(_run(sys.argv[1], sys.argv[2:])))


if __name__ == "__main__":
    main()
