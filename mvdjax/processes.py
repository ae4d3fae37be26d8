"""What several processes of one run tell each other."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_main() -> bool:
    """Whether this is process 0, which alone writes files that all share."""
    return jax.process_index() == 0


def broadcast(value: Any) -> np.ndarray:
    """Process 0's number or array of numbers, on every process. All must call it."""
    value = np.asarray(value)
    return value if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(value))


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
