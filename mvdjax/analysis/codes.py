"""What a tokenizer makes of images: its codes, and what can be seen again from them alone."""

import colorsys

import jax
import ml_collections
import numpy as np

from mvdjax import config as configs
from mvdjax import handover
from mvdjax.analysis.pictures import Row, draw_rows, shown_frames
from mvdjax.analysis.reconstruct import read_batch
from mvdjax.analysis.runs import TrainedRun
from mvdjax.tasks import tokenizer_vq

TOKENIZER = 'tokenizer_vq'  # the task
_TURN = 0.61803  # of the colour circle between one code and the next: neighbours in number look different


def draw_codes(run: TrainedRun, path: str) -> None:
    """Writes the PNG of a run of `TOKENIZER` with a checkpoint: input, codes, reconstruction.

    Raises:
      UserError: data or checkpoint cannot be read.
      OSError: the file cannot be written.
    """
    assert run.meta is not None
    task: tokenizer_vq.Task = configs.make_task(ml_collections.ConfigDict(run.meta['config']))
    batch, _ = read_batch(run)
    video = batch['video']
    expected = jax.eval_shape(task.init, jax.random.key(0), {'video': video})
    params = handover.load_params(run.workdir, expected, 'model').params
    pixels, codes = jax.device_get(jax.jit(task.reconstruct)(params, video))
    psnr = float(np.mean(-10 * np.log10(np.mean(np.square(pixels - video / 255.0), axis=(1, 2, 3, 4)))))
    model = task.backbone()
    frames = shown_frames(video.shape[1], 1)

    def flat(values: np.ndarray) -> np.ndarray:
        return values[:, frames].reshape(-1, *values.shape[2:])

    side = model.patch[1:]
    cells = colors(model.vocabulary)[flat(codes)].repeat(side[0], axis=1).repeat(side[1], axis=2)
    used = len(np.unique(codes))
    rows = [
        Row('Input', 'after the crop and resize of the training recipe', flat(video)),
        Row('Codes', f'one for {side[0]} x {side[1]} pixels; a colour is a code, {used} different ones here', cells),
        Row(
            'Reconstruction from the codes alone',
            f'{psnr:.1f} dB peak signal-to-noise ratio on these',
            np.round(flat(pixels) * 255).astype(np.uint8),
        ),
    ]
    subtitle = f'{run.task}  ·  step {run.meta["step"]}  ·  {model.vocabulary} codes'
    draw_rows(run.name, subtitle, rows, path, frames if len(video) == 1 else ())


def colors(vocabulary: int) -> np.ndarray:
    """A colour for each code, uint8 (vocabulary, 3)."""
    found = [
        colorsys.hsv_to_rgb(i * _TURN % 1, 0.45 + 0.5 * (i % 3) / 2, 0.95 - 0.2 * (i % 5) / 4)
        for i in range(vocabulary)
    ]
    return np.round(np.array(found) * 255).astype(np.uint8)
