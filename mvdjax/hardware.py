"""What accelerators can do at best, by the maker's data sheets: for utilisation (MFU), plans and estimates.

All figures are per JAX device, dense (no sparsity), accumulating in float32. Sources, by row:
Google: Cloud TPU documentation, system architecture pages of v4, v5e, v5p and v6e ("key chip specifications").
NVIDIA: data sheets of V100, A100, A10, A10G (AWS G5 instances), A40, RTX A6000, L4, L40S, H100, H200 and B200 (HGX);
white papers of the Ampere (GA102), Ada and Blackwell (RTX) architectures for GeForce. Sparse figures are halved.
"""

import dataclasses
from collections.abc import Mapping

TERA, GIGA, GIB = 1e12, 1e9, 2**30


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
      name: the short name that people use and commands take.
      kinds: how `jax.devices()[0].device_kind` spells it.
      bfloat16: peak FLOP/s of a matrix product of bfloat16; None if the device has no unit for it.
      float32: likewise of float32 arrays at JAX's default precision: TF32 on NVIDIA since Ampere, one pass of
        bfloat16 on TPU, plain float32 elsewhere.
      memory: bytes.
      bandwidth: bytes/s of that memory.
      link: bytes/s that the device can send to its neighbours, one way, all links together: ICI, NVLink or PCIe.
      island: devices joined by such links (a TPU pod, an NVLink node).
    """

    name: str
    kinds: tuple[str, ...]
    bfloat16: float | None
    float32: float
    memory: float
    bandwidth: float
    link: float
    island: int


def _tpu(
    name: str, kinds: tuple[str, ...], tera: float, memory: float, bandwidth: float, gbits: float, pod: int
) -> Device:
    return Device(name, kinds, tera * TERA, tera * TERA, memory * GIB, bandwidth * GIGA, gbits / 8 * GIGA, pod)


def _gpu(
    name: str,
    kinds: tuple[str, ...],
    tera: tuple[float | None, float],
    memory: float,
    bandwidth: float,
    link: float,
    node: int = 8,
) -> Device:
    low = None if tera[0] is None else tera[0] * TERA
    return Device(name, kinds, low, tera[1] * TERA, memory * GIGA, bandwidth * GIGA, link * GIGA, node)


# TPU: name, kinds, bf16 TFLOP/s, HBM GiB, HBM GB/s, interchip Gbit/s per chip, chips in a pod.
# GPU: name, kinds, (bf16, float32) TFLOP/s, memory GB, GB/s, link GB/s one way (half of NVIDIA's figure), GPUs a node.
DEVICES = (
    _tpu('v4', ('TPU v4',), 275, 32, 1228, 2400, 4096),
    _tpu('v5e', ('TPU v5 lite', 'TPU v5e'), 197, 16, 819, 1600, 256),
    _tpu('v5p', ('TPU v5', 'TPU v5p'), 459, 95, 2765, 4800, 8960),
    _tpu('v6e', ('TPU v6 lite', 'TPU v6e'), 918, 32, 1640, 3584, 256),
    _gpu('V100', ('Tesla V100-SXM2-16GB',), (None, 15.7), 16, 900, 150),
    _gpu('V100-32GB', ('Tesla V100-SXM2-32GB', 'Tesla V100-SXM3-32GB'), (None, 15.7), 32, 900, 150),
    _gpu('A100', ('NVIDIA A100-SXM4-80GB',), (312, 156), 80, 2039, 300),
    _gpu('A100-40GB', ('NVIDIA A100-SXM4-40GB',), (312, 156), 40, 1555, 300),
    _gpu('A100-PCIE', ('NVIDIA A100 80GB PCIe',), (312, 156), 80, 1935, 32),
    _gpu('A100-PCIE-40GB', ('NVIDIA A100-PCIE-40GB',), (312, 156), 40, 1555, 32),
    _gpu('A10', ('NVIDIA A10',), (125, 62.5), 24, 600, 32),
    _gpu('A10G', ('NVIDIA A10G',), (70, 35), 24, 600, 32),
    _gpu('A40', ('NVIDIA A40',), (149.7, 74.8), 48, 696, 32),
    _gpu('A6000', ('NVIDIA RTX A6000',), (154.8, 77.4), 48, 768, 32),
    _gpu('L4', ('NVIDIA L4',), (121, 60), 24, 300, 32),
    _gpu('L40S', ('NVIDIA L40S',), (362, 183), 48, 864, 32),
    _gpu('RTX3090', ('NVIDIA GeForce RTX 3090',), (71, 35.6), 24, 936, 32),
    _gpu('RTX4090', ('NVIDIA GeForce RTX 4090',), (165.2, 82.6), 24, 1008, 32),
    _gpu('RTX5090', ('NVIDIA GeForce RTX 5090',), (209.5, 104.8), 32, 1792, 64),
    _gpu('H100', ('NVIDIA H100 80GB HBM3',), (989.4, 494.7), 80, 3350, 450),
    _gpu('H100-PCIE', ('NVIDIA H100 PCIe',), (756, 378), 80, 2000, 64),
    _gpu('H100-NVL', ('NVIDIA H100 NVL',), (835.5, 417.5), 94, 3900, 64),
    _gpu('H200', ('NVIDIA H200',), (989.4, 494.7), 141, 4800, 450),
    _gpu('H200-NVL', ('NVIDIA H200 NVL',), (835.5, 417.5), 141, 4800, 64),
    _gpu('B200', ('NVIDIA B200',), (2250, 1125), 180, 7700, 900),
)

_BY_NAME: Mapping[str, Device] = {key.lower(): d for d in DEVICES for key in (d.name, *d.kinds)}


def find(name: str) -> Device | None:
    """The device of a `device_kind` or a short name, case aside; None if it is not in the table."""
    return _BY_NAME.get(name.lower())


def peak_flops(device_kind: str, dtype: str = 'bfloat16') -> float | None:
    """Peak FLOP/s of matrix products.

    Args:
      device_kind: as JAX spells it, or a short name.
      dtype: 'bfloat16' or 'float32' (at JAX's default matmul precision).

    Returns:
      None if the device is unknown, or has no unit for the type: there is no utilisation to speak of.

    Raises:
      ValueError: another type.
    """
    if dtype not in ('bfloat16', 'float32'):
        raise ValueError(f'there are peak rates for bfloat16 and float32, not for {dtype!r}')
    device = find(device_kind)
    return None if device is None else getattr(device, dtype)
