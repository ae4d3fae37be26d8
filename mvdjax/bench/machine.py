"""What machine and which libraries a measurement was made with."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

import psutil


def facts(packages: Sequence[str]) -> dict[str, Any]:
    """JSON-able: processor, cores, memory, load, Python, and the versions of packages (None: not installed)."""
    return {
        'processor': _processor(),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'memory_gib': round(psutil.virtual_memory().total / 2**30, 1),
        'load_1_5_15_min': [round(load, 2) for load in os.getloadavg()],
        'system': platform.platform(),
        'python': platform.python_version(),
        'packages': {name: _version(name) for name in packages},
    }


def _processor() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            return next(line.split(':', 1)[1].strip() for line in file if line.startswith('model name'))
    except (OSError, StopIteration):  # not Linux, or not x86
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
