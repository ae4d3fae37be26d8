"""What a run prints: lines from the first process only, and a progress bar that a log file never sees."""

import jax
from tqdm import tqdm


def say(text: str) -> None:
    """Prints a line (or several) from process 0, above a progress bar if one is showing."""
    if jax.process_index() == 0:
        tqdm.write(text)


def progress_bar(total: int, initial: int, unit: str) -> 'tqdm':
    """A bar on a terminal, nothing elsewhere or on other processes. Close it, or use it in a with-block."""
    disable = None if jax.process_index() == 0 else True  # None: tqdm looks whether it writes to a terminal
    return tqdm(total=total, initial=initial, unit=unit, disable=disable, dynamic_ncols=True)
