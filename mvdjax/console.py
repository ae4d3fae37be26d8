"""What a run prints: lines from the first process only, and a progress bar that a log file never sees."""

from tqdm import tqdm

from mvdjax import processes


def say(text: str) -> None:
    """Prints a line (or several) from process 0, above a progress bar if one is showing."""
    if processes.is_main():
        tqdm.write(text)


def progress_bar(total: int, initial: int, unit: str) -> 'tqdm':
    """A bar on a terminal, nothing elsewhere or on other processes. Close it, or use it in a with-block."""
    disable = None if processes.is_main() else True  # None: tqdm looks whether it writes to a terminal
    return tqdm(total=total, initial=initial, unit=unit, disable=disable, dynamic_ncols=True)
