"""Which machine and which software a figure was measured with."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

PACKAGES = ("diptych", "openvino", "openvino-genai", "numpy", "pyzmq", "msgspec", "fastapi", "uvicorn", "httpx")
VECTOR_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
GIT_TIMEOUT_S = 10.0


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures depend on."""

    cpu_model: str
    vector_flags: list[str]
    num_cores: int
    allowed_cores: list[int]
    memory_bytes: int
    kernel: str
    load_average_1m: float
    """Before the run: well above 0 means that somebody else was computing too."""


def host_facts() -> HostFacts:
    """Read the facts of this machine from procfs."""
    cpuinfo = _fields(Path("/proc/cpuinfo"))
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    name = cpuinfo.get("model name", platform.machine())
    family = f" (family {cpuinfo['cpu family']}, model {cpuinfo['model']})" if "cpu family" in cpuinfo else ""
    return HostFacts(
        cpu_model=name + family,
        vector_flags=[flag for flag in VECTOR_FLAGS if flag in flags],
        num_cores=os.cpu_count() or 1,
        allowed_cores=sorted(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        load_average_1m=os.getloadavg()[0],
    )


def _fields(path: Path) -> dict[str, str]:
    """Return the first value of each `name : value` line."""
    fields: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def software_versions() -> dict[str, str]:
    """Return versions of Python, of what is installed, and the checkout's commit."""
    versions = {"python": platform.python_version(), "commit": _commit()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    return answer.stdout.strip() or "unknown"
