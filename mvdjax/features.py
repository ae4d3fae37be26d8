"""`mvdjax features`: what a trained encoder makes of videos, one row for each, in a NumPy array on the disk.

Any checkpoint of a task that has an encoder will do: its task hands the encoder out (`Task.feature_encoder`), and
whole, unmasked clips go through it. What is written, and how a run that was interrupted goes on, is in
feature_store.py.
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import jax

from mvdjax import __version__, checkpoints, preemption
from mvdjax import config as configs
from mvdjax.console import say
from mvdjax.data import media
from mvdjax.data.pipeline import Data, filter_bad_files, remove_bad_files
from mvdjax.data.progress import Progress
from mvdjax.data.schema import FileList, Record
from mvdjax.errors import UserError
from mvdjax.evaluate import make_writable
from mvdjax.feature_batches import NOT_FINITE, FeatureBatches
from mvdjax.feature_store import (
    ARRAY,
    BAD,
    DTYPES,
    FORMAT,
    LINES,
    FeatureStore,
    check_folder,
    digest,
    failures,
    is_whole,
    weights_digest,
)
from mvdjax.inference import VIEWS, Finished, open_finished, parse_views, read_videos, tell_unreadable, view_options
from mvdjax.settings import Run
from mvdjax.tasks.base import Encoder
from mvdjax.tasks.encoders import check_layer, encode_views
from mvdjax.workdir_lock import WorkdirLock

KINDS = ('clip', 'dense')
IMAGE_MODEL_FRAMES = 16  # that a model of images is shown of a video, unless --frames says otherwise


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """What to compute.

    Attributes:
      kind: 'clip', a vector per video, or 'dense', the map of tokens of every view.
      layer: see `tasks.base.Encoder`; None is what follows the last one.
      views: CLIPSxCROPS, '' for those of the model's test, or one clip where it has none.
      each_view: with 'clip', a vector per view instead of their mean.
      frames: per clip; None is as in training.
      stride: frames between two of them; None is as in training.
      use_ema: encode with the moving average of the parameters.
      dtype: of the numbers that are written.
    """

    kind: str = 'clip'
    layer: int | None = None
    views: str = ''
    each_view: bool = False
    frames: int | None = None
    stride: int | None = None
    use_ema: bool = False
    dtype: str = 'float32'

    def __post_init__(self) -> None:
        """Refuses what is none of them."""
        for option, value, known in (('kind', self.kind, KINDS), ('dtype', self.dtype, DTYPES)):
            if value not in known:
                raise UserError(f'--{option} is one of {", ".join(known)}, not {value!r}')
        if self.each_view and self.kind == 'dense':
            raise UserError('--each_view is of --kind=clip: maps are of every view anyway')


@dataclasses.dataclass(frozen=True)
class Job:
    """All that decides the features.

    Attributes:
      finished: the model.
      encoder: of its task.
      spec: what is asked for.
      files: the videos.
      data: how they are read.
      single_frames: whether the model takes images.
    """

    finished: Finished
    encoder: Encoder
    spec: FeatureSpec
    files: FileList
    data: Data
    single_frames: bool

    def function(self) -> Any:
        """(parameters, uint8 (b, views, t, h, w, c)) -> features."""
        return functools.partial(
            encode_views,
            self.encoder,
            dense=self.spec.kind == 'dense',
            layer=self.spec.layer,
            each_view=self.spec.each_view,
            single_frames=self.single_frames,
        )

    def load(self) -> Any:
        """The encoder's parameters, on the host."""
        video = self.data.make().blank()['video'][:1]
        if self.single_frames:
            video = video[:, :1]
        expected = jax.eval_shape(self.encoder.init, jax.random.key(0), video)
        return self.finished.load(expected, self.spec.use_ema, self.encoder.unused)

    def about(self, params: Any) -> dict[str, Any]:
        """The content of features.json, less what is known in the end."""
        video = self.data.make().blank()['video'][None]
        shape = jax.eval_shape(self.function(), params, video).shape[1:]
        axes = {1: (), 2: ('view',), 5: ('view', 'time', 'row', 'column')}[len(shape)]
        meta, spec = self.finished.meta, self.spec
        return {
            'format': FORMAT,
            'mvdjax': __version__,
            'array': {
                'file': ARRAY,
                'axes': ['video', *axes, 'channel'],
                'shape': [len(self.files.records), *shape],
                'dtype': spec.dtype,
            },
            'kind': spec.kind,
            'layer': spec.layer,
            'each_view': spec.each_view,
            'views': self.data.options,
            'single_frames': self.single_frames,
            'checkpoint': {
                'path': str(checkpoints.find_step_folder(self.finished.path)),
                'task': self.finished.config.task_name,
                'ema': spec.use_ema,
                'weights': weights_digest(params),
                'config': digest(configs.flat(self.finished.config)),
                'class_names': meta['class_names'],
                'licence': meta['licence'],
                'sources': meta['sources'],
            },
            'videos': {
                'list': self.files.path,
                # Whole paths: a row belongs to one file, not to another of its name.
                'fingerprint': digest([[media.absolute(r.path), r.label] for r in self.files.records]),
                'class_names': list(self.files.class_names),
                'unreadable': 0,
            },
        }


def make_job(checkpoint: str, videos: str, spec: FeatureSpec, workers: int = 0, threads: int = 2) -> Job:
    """What arguments mean.

    Raises:
      UserError: they fit neither each other nor the checkpoint.
    """
    for option, value, least in (('workers', workers, 0), ('threads', threads, 1)):
        if value < least:
            raise UserError(f'--{option} must be at least {least}, not {value}')
    finished = open_finished(checkpoint)
    encoder = finished.task.feature_encoder()
    check_layer(encoder, spec.layer)
    clips, crops = parse_views(spec.views) if spec.views else (None, None)
    files = read_videos(videos)
    options = view_options(finished, clips=clips, crops=crops, length=spec.frames, stride=spec.stride)
    single_frames = finished.meta['input_shape'][0] == 1
    pictures = all(record.path.lower().endswith(media.IMAGE_SUFFIXES) for record in files.records)
    if pictures and not single_frames:
        say(f'note: {videos} holds images, and the model takes clips: each becomes a clip in which nothing moves')
    if single_frames and spec.frames is None:
        options['length'] = 1 if pictures else IMAGE_MODEL_FRAMES
    data = Data(recipe=VIEWS, options=options, workers=workers, threads=threads)
    data.make()  # which checks the options
    return Job(finished, encoder, spec, files, data, single_frames)


def write_features(job: Job, output: str, batch: int = 8) -> dict[str, Any]:
    """Computes features and writes them, or goes on where an earlier start ended.

    Videos that an earlier start could not read are tried again, once the rest is written.

    Args:
      job: what to compute.
      output: folder, see feature_store.py.
      batch: videos per step over all devices; for each device the same number, so it is rounded up.

    Returns:
      {'videos': in the list, 'unreadable': left out}.

    Raises:
      UserError: the folder is of something else or cannot be written, weights do not fit, no video can be read.
      Stopped: by SIGTERM or Ctrl-C; the batches that were under way are written.
    """
    if batch < 1:
        raise UserError(f'--batch must be at least 1, not {batch}')
    count = len(job.files.records)
    params = job.load()
    about = job.about(params)
    before = check_folder(output, about)
    if before and before['finished'] and is_whole(output, about) and not _to_try_again(output):
        say(f'{output} is finished: {_summary(count, before["videos"]["unreadable"], about)}')
        return {'videos': count, 'unreadable': before['videos']['unreadable']}
    make_writable(output)
    bad = os.path.join(output, BAD)
    settings: Run = configs.build(Run, configs.section(job.finished.config, 'run'), 'run')
    with WorkdirLock(output), preemption.Notice() as notice:
        shape, precision = about['array']['shape'][1:], settings.matmul_precision
        batches = FeatureBatches(
            job.data, job.function(), params, shape=shape, batch=batch, bad=bad, precision=precision
        )
        store = FeatureStore(output, about)
        done = store.go_on(batches.batch)
        again = _to_try_again(output)
        if not done:
            remove_bad_files(bad)
        elif not store.finished:
            say(f'{output} has {store.rows} of {count} videos; going on')
        _write_rest(job, store, batches, notice, done)
        if again:
            _try_again(job, store, batches, notice, again, bad)
        if store.unreadable == count:
            store.discard()
            raise UserError(f'none of the {count} files of {job.files.path} can be read: see {bad}')
        failed = {job.files.records[row].path for row in failures(output)}
        filter_bad_files(bad, lambda entry: entry['path'] in failed)  # another start may have noted one mended since
        store.finish()
    say(f'{output}{" is finished" * store.finished}: {_summary(count, store.unreadable, about)}')
    return {'videos': count, 'unreadable': store.unreadable}


def _to_try_again(output: str) -> list[int]:
    """The rows without a feature that could be read another time: where the model is at fault, no time will help."""
    return [row for row, error in failures(output).items() if error != NOT_FINITE]


def _write_rest(
    job: Job, store: FeatureStore, batches: FeatureBatches, notice: preemption.Notice, start_step: int
) -> None:
    """Appends what is missing."""
    count = len(job.files.records)
    with (
        Progress('encoded', count - store.rows) as bar,
        closing(batches.of(job.files, notice.reached, start_step)) as found,
    ):
        for values, errors in found:
            records = job.files.records[store.rows : store.rows + len(errors)]
            store.append(values, records, errors)
            _tell(records, errors)
            bar.update(count=len(errors))
    if store.rows < count:
        raise notice.stopped(f'after {store.rows} of {count} videos, which are written')


def _try_again(
    job: Job, store: FeatureStore, batches: FeatureBatches, notice: preemption.Notice, rows: list[int], bad: str
) -> None:
    """Amends the rows of videos that can be read by now."""
    files = dataclasses.replace(job.files, records=tuple(job.files.records[row] for row in rows))
    tried, before = 0, store.unreadable
    paths = {record.path for record in files.records}
    filter_bad_files(bad, lambda entry: bool(entry.get('skip')) or entry['path'] not in paths)
    with closing(batches.of(files, notice.reached)) as found:
        for values, errors in found:
            end = tried + len(errors)
            store.amend(rows[tried:end], values, files.records[tried:end], errors)
            _tell(files.records[tried:end], errors)
            tried = end
    say(f'{before - store.unreadable} of {tried} videos that could not be read before can be read now')
    if tried < len(rows):
        raise notice.stopped('while such videos were tried again')


def _tell(records: Sequence[Record], errors: Sequence[str | None]) -> None:
    for record, error in zip(records, errors, strict=True):
        if error is not None:
            tell_unreadable(record.path, error)


def _summary(count: int, unreadable: int, about: dict[str, Any]) -> str:
    array = about['array']
    text = f'features of {count - unreadable} of {count} videos, {array["dtype"]} {tuple(array["shape"])}'
    return text + (
        f'; {unreadable} without (rows of NaN; {LINES} says why; the same command tries them again)'
        if unreadable
        else ''
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax features`."""
    parser.add_argument('--checkpoint', required=True, help='workdir or checkpoint of any stage that has an encoder')
    parser.add_argument(
        '--videos', required=True, metavar='LIST', help='a video, a folder, or a list as data.files of a config'
    )
    parser.add_argument(
        '--output', required=True, metavar='DIR', help='folder of the features: new, or of an interrupted run'
    )
    parser.add_argument(
        '--kind',
        default='clip',
        help='clip: a vector per video; dense: the map of tokens of every view (default: clip)',
    )
    parser.add_argument(
        '--layer',
        type=int,
        metavar='N',
        help='block (ViT) or stage (Swin) to take, from 1, before any norm (default: what follows the last one)',
    )
    parser.add_argument(
        '--views', default='', metavar='CLIPSxCROPS', help="of every video (default: those of the model's test, or 1x1)"
    )
    parser.add_argument('--each_view', action='store_true', help='a vector per view instead of their mean')
    parser.add_argument('--frames', type=int, help='of a clip (default: as in training; 16 for a model of images)')
    parser.add_argument('--stride', type=int, help='frames between two of them (default: as in training)')
    parser.add_argument('--batch', type=int, default=8, help='videos per step over all devices (default: 8)')
    parser.add_argument('--ema', action='store_true', help='encode with the moving average of the parameters')
    parser.add_argument(
        '--dtype', default='float32', help='of the numbers that are written, float32 or float16 (default: float32)'
    )
    parser.add_argument('--workers', type=int, default=0, help='decoding processes (default: 0, threads of this one)')
    parser.add_argument('--threads', type=int, default=2, help='decoding threads of each (default: 2)')
    parser.epilog = """example:
  mvdjax features --checkpoint=quickstart/runs/mvd_motion --videos=my_videos --output=features
then, in Python:
  features = numpy.load('features/features.npy', mmap_mode='r')  # row i is line i of features/videos.jsonl

The same command goes on after an interruption, and tries videos again that it could not read. See docs/features.md.

exit codes: 0 finished, 75 stopped by SIGTERM, 130 by Ctrl-C, both after what was under way is written, 1 failed,
2 wrong usage"""


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax features`."""
    spec = FeatureSpec(
        args.kind, args.layer, args.views, args.each_view, args.frames, args.stride, args.ema, args.dtype
    )
    job = make_job(args.checkpoint, args.videos, spec, args.workers, args.threads)
    write_features(job, args.output, args.batch)
    return 0
