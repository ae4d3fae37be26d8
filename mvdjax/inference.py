"""A finished model and anybody's videos: what the commands share that run the one on the other."""

import dataclasses
import re
import sys
from typing import Any

import ml_collections

from mvdjax import checkpoints, handover
from mvdjax import config as configs
from mvdjax.data import media
from mvdjax.data.pipeline import recipe_class
from mvdjax.data.schema import FileList, Record
from mvdjax.data.sources import NO_LABEL, read_list
from mvdjax.errors import UserError
from mvdjax.tasks.base import Task

VIEWS = 'views'  # the recipe of test views


@dataclasses.dataclass(frozen=True)
class Finished:
    """A checkpoint, its task rebuilt from the config that it carries.

    Attributes:
      path: as the user gave it.
      meta: see `checkpoints.read_meta`.
      config: of the run that made it.
      task: of the config.
    """

    path: str
    meta: dict[str, Any]
    config: ml_collections.ConfigDict
    task: Task

    def test_data(self) -> dict[str, Any] | None:
        """The data section of the evaluation set 'test'; None if there is no such set."""
        found = configs.section(self.config, 'evals').get('test')
        return None if found is None else found['data']

    def load(self, expected: Any, use_ema: bool, unused: tuple[str, ...] = ()) -> Any:
        """Parameters on the host, strictly as `expected`; those that match a regex of `unused` may be left over."""
        return handover.load_params(self.path, expected, 'model', use_ema=use_ema, allow_unused=unused).params


def open_finished(path: str) -> Finished:
    """Reads what a checkpoint says of itself.

    Args:
      path: workdir or checkpoint.

    Raises:
      UserError: no checkpoint, or one of weights alone.
    """
    meta = checkpoints.read_meta(path)
    if any(name not in meta['config'] for name in configs.SECTIONS):
        raise UserError(f'{path} holds weights without a config: convert them again, with --config=FILE')
    config = configs.from_meta(meta)
    return Finished(path, meta, config, configs.make_task(config))


def read_videos(path: str) -> FileList:
    """One file by its name, or what `data.files` of a config may be: a list, a folder, a data set, a pack.

    Raises:
      UserError: as `sources.read_list`.
    """
    if path.lower().endswith(media.VIDEO_SUFFIXES + media.IMAGE_SUFFIXES) and not media.is_folder(path):
        return FileList(path, (Record(media.absolute(path), NO_LABEL, 1),), ())
    return read_list(path)


def view_options(finished: Finished, **changes: Any) -> dict[str, Any]:
    """Options of the recipe 'views' that suit a model.

    Those of its own test, if it has one; else one clip from the middle of the video and its middle crop, as long, as
    dense and as large as in training.

    Args:
      finished: the model.
      changes: options to use instead; None changes nothing.
    """
    test = finished.test_data()
    if test and test['recipe'] == VIEWS:
        options = dict(test['options'])
    else:
        trained = configs.section(finished.config, 'data')['options']
        known = {field.name for field in dataclasses.fields(recipe_class(VIEWS))}
        options = {'sampling': 'windows', 'clips': 1, 'crops': 1}
        options |= {name: value for name, value in trained.items() if name in known}
    options |= {name: value for name, value in changes.items() if value is not None}
    if options.get('crops') != 3:
        options.pop('crop_rule', None)  # which is of three
    return options


def parse_views(text: str) -> tuple[int, int]:
    """'5x3' as (clips, crops). Raises UserError."""
    if not (found := re.fullmatch('([1-9][0-9]*)x([1-9][0-9]*)', text)):
        raise UserError(f'--views is CLIPSxCROPS, such as 5x3, not {text!r}')
    return int(found[1]), int(found[2])


def tell_unreadable(path: str, reason: str) -> None:
    """One line on stderr for a file that is left out."""
    print(f'error: {path} {reason}', file=sys.stderr, flush=True)
