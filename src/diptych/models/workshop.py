"""What a recipe gets to make a model with."""

from dataclasses import dataclass
from pathlib import Path

from diptych.models.progress import Progress


@dataclass(frozen=True, slots=True)
class Workshop:
    """A folder to make one model in, while its lock is held. Whatever is in the folder at the end is the model."""

    name: str
    """Of the model, for people."""
    folder: Path
    lock_fd: int
    """To be held by every program that writes here."""
    progress: Progress
