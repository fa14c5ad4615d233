"""openvino_genai's ContinuousBatchingPipeline, the engine that OpenVINO's own model server runs, behind a thin server.

It runs in Diptych's own environment: the same OpenVINO build and the same IR as Diptych's own engine.
"""

import sys
from importlib.metadata import version

from diptych.core.errors import BenchError, ModelError
from diptych.models import resolve
from diptych.models.progress import stderr_progress
from peers.peer import LOOPBACK, FreePort, Place, Program, our_path
from peers.stock import Stock

KV_GB = 4
MAX_NUM_SEQS = 64
MAX_NUM_BATCHED_TOKENS = 256


class OpenVinoGenAI:
    """A `Peer`."""

    name = "openvino-genai"
    description = f"openvino_genai {version('openvino-genai')}, continuous batching behind a thin server of ours"

    def install(self, stock: Stock, model: str) -> None:
        """Convert the model, unless Diptych's cache has it."""
        del stock
        try:
            resolve(model, progress=stderr_progress())
        except ModelError as error:
            raise BenchError(str(error)) from None

    def programs(self, stock: Stock, place: Place, free_port: FreePort) -> list[Program]:
        """Return the one server."""
        del stock, free_port
        settings = {
            "port": place.port,
            "model": place.model,
            "threads": len(place.cores),
            "kv-gb": KV_GB,
            "max-num-seqs": MAX_NUM_SEQS,
            "max-num-batched-tokens": MAX_NUM_BATCHED_TOKENS,
        }
        flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        command = (sys.executable, "-P", "-m", "peers.genai_server", *flags, *place.flags)
        return [Program(self.name, command, f"http://{LOOPBACK}:{place.port}/health", place.cores, our_path())]
