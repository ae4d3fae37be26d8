"""How recipes read files. The decoders are imported when the first file is: shapes can be asked for without them."""

from collections.abc import Callable

import numpy as np


def read_frames(
    path: str, pick: Callable[[int], np.ndarray], each: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """`decode.read_frames` of a path as lists have it: local, in an object store or in a pack."""
    from mvdjax.data import decode, media

    return decode.read_frames(media.fetch_clip(path), pick, each)


def read_image(path: str) -> np.ndarray:
    """`decode.read_image`, likewise."""
    from mvdjax.data import decode, media

    return decode.read_image(media.fetch(path))


def read_picked(path: str, pick: Callable[[int], np.ndarray]) -> np.ndarray:
    """`read_frames` of a video; an image file is a video of one frame."""
    from mvdjax.data import media

    if path.lower().endswith(media.IMAGE_SUFFIXES):
        return read_image(path)[None][pick(1)]
    return read_frames(path, pick)
