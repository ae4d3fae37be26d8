"""How far the fast mode of RandAugment is from Pillow, op by op, and what both cost.

python tests/data/rand_augment_table.py          prints the differences as a Markdown table
python tests/data/rand_augment_table.py --time   milliseconds per clip of 16 frames of 340 x 256 as well
"""

import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from mvdjax.data.rand_augment import Step, replay, replay_fast
from mvdjax.data.rand_augment_ops import OPS

GEOMETRIC = ('Rotate', 'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel')
FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}
MAGNITUDES = (0.4, 3.0, 7.0, 8.3, 10.0)


def rows() -> list[tuple[str, str]]:
    """(op, filter) of every row; ops without a filter have one row."""
    return [(op, name) for op in OPS for name in (FILTERS if op in GEOMETRIC else ('bicubic',))]


def noise(frames: int = 2, height: int = 45, width: int = 62) -> np.ndarray:
    """The worst case: every pixel by itself."""
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


def scene(frames: int = 2, height: int = 96, width: int = 128) -> np.ndarray:
    """Smooth shapes with a little grain, moving: more like video."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    shapes = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    moving = np.stack([np.roll(shapes, 3 * i, axis=1) for i in range(frames)])
    return (moving + rng.integers(-4, 5, moving.shape)).clip(0, 255).astype(np.uint8)


def step(op: str, filter_name: str, magnitude: float, sign: int, frames: int) -> Step:
    return Step(op, OPS[op].level(magnitude / 10, sign), (FILTERS[filter_name],) * frames)


def difference(op: str, filter_name: str, clip: np.ndarray) -> tuple[int, float]:
    """Largest and mean difference from Pillow over `MAGNITUDES` and both signs, in levels of 255."""
    off = []
    for magnitude in MAGNITUDES:
        for sign in (1, -1):
            steps = [step(op, filter_name, magnitude, sign, len(clip))]
            off.append(np.abs(replay(steps, clip).astype(int) - replay_fast(steps, clip)))
    return int(np.max(off)), float(np.mean(off))


def cost(run: Callable[..., np.ndarray], *args: object) -> float:
    """CPU milliseconds."""
    start = time.process_time()
    run(*args)
    return 1e3 * (time.process_time() - start)


def costs(op: str, filter_name: str, clip: np.ndarray, repeats: int = 5) -> tuple[float, float]:
    """Medians of Pillow's and the fast mode's cost at magnitude 7, taken in turn."""
    steps = [step(op, filter_name, 7.0, 1, len(clip))]
    taken = [(cost(replay, steps, clip), cost(replay_fast, steps, clip)) for _ in range(repeats)]
    exact, fast = np.median(taken, axis=0)
    return float(exact), float(fast)


def main() -> None:
    cv2.setNumThreads(1)
    timed = '--time' in sys.argv[1:]
    print('| op | filter | largest, scene | mean, scene | largest, noise | mean, noise |' + ' Pillow | fast |' * timed)
    print('|---|---|--:|--:|--:|--:|' + '--:|--:|' * timed)
    for op, filter_name in rows():
        shown = filter_name if op in GEOMETRIC else ''
        cells = [f'{most} | {mean:.3f}' for most, mean in (difference(op, filter_name, c()) for c in (scene, noise))]
        if timed:
            cells += [f'{value:.1f}' for value in costs(op, filter_name, scene(16, 256, 340))]
        print(f'| {op} | {shown} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
    main()
