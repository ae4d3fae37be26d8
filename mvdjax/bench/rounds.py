"""What benchmarks of steps that take turns with a peer have in common on the command line."""

import argparse
import os
from collections.abc import Callable, Sequence

from mvdjax.errors import UserError


def check(args: argparse.Namespace, counts: Sequence[str]) -> None:
    """Raises UserError for a count below 1, and for a `peer` that is no folder."""
    for name in counts:
        if getattr(args, name) < 1:
            raise UserError(f'--{name} must be at least 1, not {getattr(args, name)}')
    if args.peer and not os.path.isdir(args.peer):
        raise UserError(f'--peer={args.peer} is no folder: give a checkout of the published code')


def teller(first: str, repeats: int) -> Callable[[str, int], None]:
    """Prints a line when a round begins, for `measure.interleaved`; `first` is the way that opens it."""

    def tell(name: str, batch: int) -> None:
        if name == first:
            print(f'round {batch} of {repeats}' if batch else 'warming up: everything is compiled', flush=True)

    return tell
