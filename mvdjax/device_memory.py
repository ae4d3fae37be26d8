"""Memory of the devices, as far as they tell."""

import jax


def device_memory() -> dict[str, float]:
    """{'device_memory_mib', 'device_memory_peak_mib': of this process's fullest device}; {} where it is not known."""
    found = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not found:
        return {}
    return {
        'device_memory_mib': max(stats.get('bytes_in_use', 0) for stats in found) / 2**20,
        'device_memory_peak_mib': max(stats.get('peak_bytes_in_use', 0) for stats in found) / 2**20,
    }
