"""`mvdjax predict`: the most probable classes of any video file, with the views that the checkpoint is tested with."""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mvdjax import sharding
from mvdjax.data.decode import DecodeError
from mvdjax.data.pipeline import make_recipe
from mvdjax.data.schema import Record
from mvdjax.errors import UserError
from mvdjax.inference import open_finished, tell_unreadable


def predict(
    checkpoint: str, videos: Sequence[str], top: int = 5, use_ema: bool = False
) -> dict[str, list[tuple[str, float]]]:
    """Classifies video files.

    Args:
      checkpoint: workdir or checkpoint of a `classify` stage.
      videos: local video files of any size and length.
      top: classes per video.
      use_ema: classify with the moving average of the parameters.

    Returns:
      {file: [(class name, probability in [0, 1])]}, most probable first; files that cannot be read are left out and
      named on stderr.

    Raises:
      UserError: not a classifier, no checkpoint, or none with an average.
    """
    if top < 1:
        raise UserError(f'--top must be at least 1, not {top}')
    finished = open_finished(checkpoint)
    task: Any = finished.task
    if finished.config.task_name != 'classify':
        raise UserError(
            f'{checkpoint} is a {finished.config.task_name} checkpoint; predict needs a fine-tuned classifier'
        )
    test = finished.test_data()
    if test is None:
        raise UserError(f'the config in {checkpoint} has no evaluation set "test", so its test views are unknown')
    recipe = make_recipe(test['recipe'], test['options'])
    names = finished.meta['class_names'] or [f'class {i}' for i in range(task.num_classes)]
    mesh = sharding.make_mesh(data=1, devices=1)
    run = jax.jit(task.predict)
    params = None
    results = {}
    for path in dict.fromkeys(videos):
        try:
            sample = recipe(Record(path, 0, 0), np.random.default_rng(0))
        except DecodeError as error:
            tell_unreadable(path, error.reason)
            continue
        batch = {'video': sample['video'][None]}
        if params is None:
            expected = jax.eval_shape(task.init, jax.random.key(0), batch)
            params = sharding.place_tree(finished.load(expected, use_ema), mesh)
        probability = np.asarray(run(params, {}, batch)['probability'])[0]
        order = np.argsort(-probability, kind='stable')[:top]
        results[path] = [(names[i], float(probability[i])) for i in order]
    return results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax predict`."""
    parser.add_argument('videos', nargs='+', metavar='VIDEO', help='video files')
    parser.add_argument('--checkpoint', required=True, help='workdir or checkpoint of a fine-tuned classifier')
    parser.add_argument('--top', type=int, default=5, help='classes to print (default: 5)')
    parser.add_argument('--ema', action='store_true', help='classify with the moving average of the parameters')
    parser.epilog = """example:
  mvdjax predict --checkpoint=quickstart/runs/mvd_motion my_clip.mp4"""


def run(args: argparse.Namespace) -> int:
    """Prints a table per video. Fails if one could not be read."""
    results = predict(args.checkpoint, args.videos, args.top, args.ema)
    for path, classes in results.items():
        print(path)
        for name, probability in classes:
            print(f'  {100 * probability:5.1f}%  {name}')
    return 0 if all(path in results for path in args.videos) else 1
