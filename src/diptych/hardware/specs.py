"""What there is to buy: accelerators and links, each number with its source.

Rates are peaks of spec sheets, without sparsity; what is reached of them says `diptych.hardware.roofline.Efficiency`.
Prices are *estimates*: what specialised clouds asked for one device by the hour in 2025, hosts included. Who plans for
money brings the own prices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from diptych.core.errors import ConfigError

Thing = TypeVar("Thing")
GBIT_S = 1e9 / 8
"""Bytes a second of one Gbit/s."""


@dataclass(frozen=True, slots=True)
class Link:
    """A way for bytes; full duplex."""

    name: str
    bytes_per_s: float
    """One direction, of one device (within a node) or one node (between nodes)."""
    latency_s: float
    """Of a small message. Estimates all of them, by the magnitude that NCCL's and UCX's users report."""
    source: str

    def transfer_s(self, num_bytes: float) -> float:
        """Return how long a transfer takes that has the link to itself."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator, or a socket of a CPU."""

    name: str
    bf16_flops_per_s: float
    """Dense."""
    memory_bytes_per_s: float
    memory_bytes: float
    link: Link
    """Between devices of one node."""
    usd_per_hour: float
    source: str


NVLINK_3 = Link("nvlink-3", 300e9, 5e-6, "NVIDIA A100 datasheet: 600 GB/s, both directions together")
NVLINK_4 = Link("nvlink-4", 450e9, 5e-6, "NVIDIA H100 datasheet: 900 GB/s, both directions together")
NVLINK_5 = Link("nvlink-5", 900e9, 5e-6, "NVIDIA HGX B200 datasheet: 1.8 TB/s a GPU, both directions together")
INFINITY_FABRIC = Link("infinity-fabric", 448e9, 5e-6, "AMD MI300X data sheet: 7 links of 128 GB/s, both directions")
PCIE_4 = Link("pcie-4", 31.5e9, 10e-6, "PCI-SIG: 16 lanes of 16 GT/s, 128b/130b")
PCIE_5 = Link("pcie-5", 63e9, 10e-6, "PCI-SIG: 16 lanes of 32 GT/s, 128b/130b")


def network(gbit_per_s: float) -> Link:
    """Return Ethernet or InfiniBand of that rate, the wire's own: 25 to 400 Gbit/s are sold."""
    return Link(f"{gbit_per_s:g}gbps", gbit_per_s * GBIT_S, 20e-6, "the rate that is its name; RDMA, one card a node")


LINKS = {
    link.name: link
    for link in (
        *(NVLINK_3, NVLINK_4, NVLINK_5, INFINITY_FABRIC, PCIE_4, PCIE_5),
        *(network(rate) for rate in (25, 50, 100, 200, 400, 800, 1600, 3200)),
    )
}
"""800gbps and more: several cards of a node together."""

DEVICES = {
    device.name: device
    for device in (
        Device("a100-40g", 312e12, 1.555e12, 40e9, NVLINK_3, 1.3, "NVIDIA A100 datasheet, 40GB SXM"),
        Device("a100-80g", 312e12, 2.039e12, 80e9, NVLINK_3, 1.8, "NVIDIA A100 datasheet, 80GB SXM"),
        Device("h100", 989e12, 3.35e12, 80e9, NVLINK_4, 3.0, "NVIDIA H100 datasheet, SXM (1,979 with sparsity)"),
        Device("h200", 989e12, 4.8e12, 141e9, NVLINK_4, 3.8, "NVIDIA H200 datasheet, SXM"),
        Device("b200", 2250e12, 8e12, 180e9, NVLINK_5, 5.0, "NVIDIA HGX B200 datasheet, an eighth of a board"),
        Device("mi300x", 1307e12, 5.3e12, 192e9, INFINITY_FABRIC, 2.5, "AMD Instinct MI300X data sheet"),
        Device("l40s", 362e12, 0.864e12, 48e9, PCIE_4, 0.9, "NVIDIA L40S datasheet (733 with sparsity)"),
        Device(
            "epyc-9755",
            128 * 128 * 2.7e9,
            614e9,
            768e9,
            PCIE_5,
            2.5,
            "AMD EPYC 9755 product page: 128 cores at 2.7 GHz, 12 channels of DDR5-6400; 128 bf16 operations a core "
            "and cycle (two 512-bit dot products) are an estimate, as is its memory (12 modules of 64 GB)",
        ),
    )
}


def find_device(name: str) -> Device:
    """Return a device by name.

    Raises: ConfigError naming those that there are.
    """
    return _find(DEVICES, name, "hardware")


def find_link(name: str) -> Link:
    """Return a link by name; any other rate is written like 40gbps.

    Raises: ConfigError naming those that there are.
    """
    rate = name.lower().removesuffix("gbps")
    if rate != name.lower() and rate.replace(".", "", 1).isdigit() and float(rate) > 0:
        return network(float(rate))
    return _find(LINKS, name, "link")


def _find(known: Mapping[str, Thing], name: str, what: str) -> Thing:
    thing = known.get(name.lower())
    if thing is None:
        raise ConfigError(f"{what} {name!r} is not known; known are {', '.join(known)}")
    return thing
