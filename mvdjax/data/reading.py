"""How recipes read files. The decoders are imported when the first file is: shapes can be asked for without them."""

from collections.abc import Callable

import numpy as np


def read_frames(path: str, pick: Callable[[int], np.ndarray]) -> np.ndarray:
    """`decode.read_frames` of a path as lists have it: local, in an object store or in a pack."""
    from mvdjax.data import decode, media

    return decode.read_frames(media.fetch_clip(path), pick)


def read_image(path: str) -> np.ndarray:
    """`decode.read_image`, likewise."""
    from mvdjax.data import decode, media

    return decode.read_image(media.fetch(path))
