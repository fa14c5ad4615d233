"""Whether there are traces: what the environment asks for, and whether the packages for it are there."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from diptych.core.clock import Clock

if TYPE_CHECKING:
    from diptych.telemetry.traces import Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
log = logging.getLogger(__name__)


def wants_traces(environ: Mapping[str, str]) -> bool:
    """Tell whether OpenTelemetry's variables ask for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environ.get(name) for name in ENDPOINTS)


def open_traces(environ: Mapping[str, str], model_name: str, clock: Clock) -> "Traces | None":
    """Return who makes traces; None where nobody asks for any, or the packages for it are missing (the log says so)."""
    if not wants_traces(environ):
        return None
    try:
        from diptych.telemetry.traces import Traces, make_exporter  # noqa: PLC0415  an extra: it may not be there

        return Traces(model_name, clock, make_exporter(environ), environ)
    except ImportError as error:
        log.warning("no traces, for %s is not installed: pip install 'diptych[otel]'", error.name)
        return None
