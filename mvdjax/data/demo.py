"""The built-in demo data set: rendered videos, really encoded, with an appearance and a motion label each.

`mvdjax data demo --output=DIR` writes videos (H.264 in mp4, VP9 in webm), JPEG images, and lists in the Kinetics style
(`relative/path label`). What the pictures show, and why no single frame tells the motion, is in `demo_scene`. The same
`DemoSpec` gives the same frames everywhere and, on one machine, the same files, with any number of processes.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from tqdm import tqdm

from mvdjax.data.demo_scene import (
    APPEARANCE_CLASSES,
    MOTION_CLASSES,
    Frames,
    Plan,
    draw_scene,
    generator,
    plan_video,
    render_scene,
)
from mvdjax.errors import UserError

__all__ = [
    'APPEARANCE_CLASSES',
    'MOTION_CLASSES',
    'DemoSpec',
    'add_arguments',
    'render_image',
    'render_video',
    'run',
    'write_demo',
]

VERSION = 4  # of the generator: raise it with every change that alters a frame, a label or a file
SUMMARY = 'demo.json'  # written last: it marks a complete set
UNFINISHED = 'demo.unfinished.json'  # the same, while a set is being written

# Streams of `demo_scene.generator`; 0 and 1 are the labels' and the plan's.
_SCENE_STREAM = 2
_MOMENT_STREAM = 3

_CHUNK = 16  # files per job of a worker process
_CODECS: dict[str, tuple[str, dict[str, str]]] = {
    # Without mbtree: for pictures this small x264's gives different bytes from call to call, with one thread too.
    'mp4': ('libx264', {'preset': 'veryfast', 'crf': '20', 'mbtree': '0'}),
    'webm': ('libvpx-vp9', {'deadline': 'realtime', 'cpu-used': '8', 'crf': '24', 'b': '0'}),
}


@dataclasses.dataclass(frozen=True)
class DemoSpec:
    """What to write; every field is a command line argument of `mvdjax data demo`.

    Attributes:
      seed: of everything random, >= 0.
      pretrain: number of training videos.
      labelled: the first so many training videos make up the labelled training lists; balanced if a multiple of 8.
      val, test: number of videos of these splits.
      images: number of JPEG images.
      workers: processes; 0 means one per core. It has no influence on what is written.
    """

    seed: int = 0
    pretrain: int = 1600
    labelled: int = 320
    val: int = 64
    test: int = 320
    images: int = 1600
    workers: int = 0


_HELP = {
    'seed': 'seed of everything random',
    'pretrain': 'training videos',
    'labelled': 'how many of the training videos are in the labelled lists (balanced if a multiple of 8)',
    'val': 'validation videos',
    'test': 'test videos',
    'images': 'JPEG images',
    'workers': 'processes, 0 for one per core',
}


@dataclasses.dataclass(frozen=True)
class _Item:
    """One video or image to write: where, relative to the output directory, and what."""

    path: str
    seed: int
    split: str
    index: int
    motion: int
    appearance: int


def render_video(seed: int, split: str, index: int) -> tuple[Frames, dict[str, Any]]:
    """Renders a video, before any encoding.

    Args:
      seed: >= 0.
      split: 'train', 'val' or 'test' ('images' has scenes too, of which `render_image` shows one frame).
      index: >= 0.

    Returns:
      uint8 (frames, height, width, 3), RGB, and a dict: motion, appearance (ints), fps (Fraction), container ('mp4' or
      'webm').
    """
    plan = plan_video(seed, split, index)
    frames = render_scene(draw_scene(plan, generator(seed, split, _SCENE_STREAM, index)))
    return frames, {
        'motion': plan.motion,
        'appearance': plan.appearance,
        'fps': plan.fps,
        'container': plan.container,
    }


def render_image(seed: int, index: int) -> tuple[Frames, Plan]:
    """Renders image `index`: one random moment of a scene of the split 'images', uint8 (height, width, 3), RGB."""
    plan = plan_video(seed, 'images', index)
    scene = draw_scene(plan, generator(seed, 'images', _SCENE_STREAM, index))
    moment = int(generator(seed, 'images', _MOMENT_STREAM, index).integers(plan.frames))
    return render_scene(scene, range(moment, moment + 1))[0], plan


def encode_video(frames: Frames, fps: Fraction, container: str) -> bytes:
    """Encodes uint8 (t, h, w, 3) RGB frames, h and w even, to the bytes of an 'mp4' (H.264) or 'webm' (VP9) file."""
    codec, options = _CODECS[container]
    buffer = io.BytesIO()
    # One thread and the bitexact flags (no library versions, dates or random identifiers): equal frames, equal bytes.
    with av.open(buffer, 'w', format=container, container_options={'fflags': '+bitexact'}) as output:
        stream = output.add_stream(codec, rate=fps, options={**options, 'threads': '1', 'flags': '+bitexact'})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        for picture in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def encode_image(picture: Frames) -> bytes:
    """Encodes a uint8 (h, w, 3) RGB picture to the bytes of a JPEG file of quality 92."""
    _, data = cv2.imencode('.jpg', np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return data.tobytes()


def _write_file(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; raises OSError."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write_items(root: Path, items: list[_Item]) -> int:
    """Renders, encodes and writes items; runs in a worker process. Returns their number; raises OSError."""
    for item in items:
        if item.split == 'images':
            data = encode_image(render_image(item.seed, item.index)[0])
        else:
            frames, info = render_video(item.seed, item.split, item.index)
            data = encode_video(frames, info['fps'], info['container'])
        _write_file(root / item.path, data)
    return len(items)


def _items(spec: DemoSpec) -> dict[str, list[_Item]]:
    """Returns what the set consists of, by split, in the order of the lists."""
    counts = {'train': spec.pretrain, 'val': spec.val, 'test': spec.test, 'images': spec.images}
    items: dict[str, list[_Item]] = {}
    for split, count in counts.items():
        items[split] = []
        for index in range(count):
            plan = plan_video(spec.seed, split, index)
            path = f'images/{index:05d}.jpg' if split == 'images' else f'videos/{split}/{index:05d}.{plan.container}'
            items[split].append(_Item(path, spec.seed, split, index, plan.motion, plan.appearance))
    return items


def _text_files(spec: DemoSpec, items: dict[str, list[_Item]]) -> dict[str, str]:
    """Returns the contents of the lists and the class files by file name."""
    labelled = {'train': items['train'][: spec.labelled], 'val': items['val'], 'test': items['test']}
    lists = {'pretrain': [(item.path, 0) for item in items['train']]}
    lists['images'] = [(item.path, item.appearance) for item in items['images']]
    for split, chosen in labelled.items():
        lists[f'motion_{split}'] = [(item.path, item.motion) for item in chosen]
        lists[f'appearance_{split}'] = [(item.path, item.appearance) for item in chosen]
    files = {f'{name}.txt': ''.join(f'{path} {label}\n' for path, label in rows) for name, rows in lists.items()}
    files['motion_classes.txt'] = ''.join(f'{name}\n' for name in MOTION_CLASSES)
    files['appearance_classes.txt'] = ''.join(f'{name}\n' for name in APPEARANCE_CLASSES)
    return files


def _summary(spec: DemoSpec) -> dict[str, Any]:
    """Returns the contents of `demo.json`: all that determines the set, and its counts."""
    fields = dataclasses.asdict(spec)
    del fields['workers']
    counts = {'videos': spec.pretrain + spec.val + spec.test, 'images': spec.images}
    return {'generator': 'mvdjax demo', 'version': VERSION, 'spec': fields, 'counts': counts}


def _check_spec(spec: DemoSpec) -> None:
    """Raises UserError for numbers that make no data set."""
    for name, value in dataclasses.asdict(spec).items():
        if value < 0:
            raise UserError(f'The demo data set cannot have {name}={value}: give a number that is not negative.')
    if spec.labelled > spec.pretrain:
        raise UserError(
            f'The demo data set cannot have labelled={spec.labelled} of only pretrain={spec.pretrain} training videos: '
            'lower labelled or raise pretrain.'
        )


def _is_complete(root: Path, summary: dict[str, Any]) -> bool:
    """Returns whether `root` says it holds the whole set; raises UserError if it holds something else."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise UserError(f'The output {root} is not a directory: give another --output.')
    for name in (SUMMARY, UNFINISHED):
        if (root / name).exists():
            try:
                found = json.loads((root / name).read_text())
            except ValueError:
                found = None
            if found != summary:
                raise UserError(
                    f'The directory {root} holds a different demo data set (see {root / name}): '
                    'give another --output, the same settings as before, or delete the directory.'
                )
            return name == SUMMARY
    if any(root.iterdir()):
        raise UserError(f'The directory {root} is not empty and holds no demo data set: give another --output.')
    return False


def _run_jobs(root: Path, jobs: list[list[_Item]], workers: int) -> Iterator[int]:
    """Writes the items of all jobs, yielding the number written by each job as it ends; raises OSError."""
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if workers <= 1:
        for job in jobs:
            yield _write_items(root, job)
        return
    # Spawned, never forked: the caller may hold threads and an accelerator.
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
        futures = [pool.submit(_write_items, root, job) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_missing(root: Path, items: Iterable[_Item], spec: DemoSpec, progress: bool | None) -> None:
    """Writes the items that are not there yet; raises OSError."""
    missing = [item for item in items if not (root / item.path).exists()]
    jobs = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
    disable = None if progress is None else not progress  # None: shown on a terminal only
    with tqdm(total=len(missing), desc='demo data', unit='file', disable=disable) as bar:
        for written in _run_jobs(root, jobs, spec.workers):
            bar.update(written)


def write_demo(output: str | os.PathLike[str], spec: DemoSpec = DemoSpec(), progress: bool | None = None) -> dict:
    """Writes the demo data set, or completes one that was interrupted; does nothing if it is there.

    Args:
      output: directory to write to; new, empty, or holding (part of) the same set.
      spec: what to write.
      progress: True shows a progress bar, False prints nothing, None shows the bar on a terminal only; the lines at
        start and end are printed unless False.

    Returns:
      The contents of `demo.json` with 'seconds' (wall time of this call) and 'bytes' (of videos and images).

    Raises:
      UserError: the spec makes no set, the directory holds something else, or writing failed.
    """
    start = time.perf_counter()
    _check_spec(spec)
    root, summary = Path(output), _summary(spec)
    try:
        items = _items(spec)
        everything = [item for chosen in items.values() for item in chosen]
        texts = _text_files(spec, items)
        named = [item.path for item in everything] + list(texts)
        if _is_complete(root, summary) and all((root / name).exists() for name in named):
            _say(progress, f'The demo data set in {root} is complete: nothing to do.')
        else:
            _say(progress, f'Writing {len(everything)} videos and images of the demo data set to {root}.')
            for split in ('train', 'val', 'test'):
                (root / 'videos' / split).mkdir(parents=True, exist_ok=True)
            (root / 'images').mkdir(exist_ok=True)
            content = (json.dumps(summary, indent=2) + '\n').encode()
            _write_file(root / UNFINISHED, content)
            (root / SUMMARY).unlink(missing_ok=True)
            _write_missing(root, everything, spec, progress)
            for name, text in texts.items():
                _write_file(root / name, text.encode())
            _write_file(root / SUMMARY, content)
            (root / UNFINISHED).unlink(missing_ok=True)
        size = sum((root / item.path).stat().st_size for item in everything)
    except OSError as error:
        raise UserError(
            f'Cannot write the demo data set to {root} ({error.strerror or error}): '
            'give an --output that is writable and has room.'
        ) from error
    seconds = time.perf_counter() - start
    _say(progress, f'The demo data set in {root}: {len(everything)} files, {size / 1e6:.1f} MB, {seconds:.1f} s.')
    return {**summary, 'seconds': seconds, 'bytes': size}


def _say(progress: bool | None, line: str) -> None:
    """Prints a line unless the caller asked for silence."""
    if progress is not False:
        print(line, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `mvdjax data demo`: --output and one per field of `DemoSpec`."""
    parser.add_argument('--output', required=True, help='directory to write to: new, empty or of an interrupted run')
    for field in dataclasses.fields(DemoSpec):
        text = f'{_HELP[field.name]} (default: %(default)s)'
        parser.add_argument(f'--{field.name}', type=int, default=field.default, help=text)


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax data demo` on parsed arguments; returns the exit status; raises UserError as `write_demo` does."""
    spec = DemoSpec(**{field.name: getattr(args, field.name) for field in dataclasses.fields(DemoSpec)})
    write_demo(args.output, spec)
    return 0
