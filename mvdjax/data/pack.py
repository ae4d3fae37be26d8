"""`mvdjax data pack`: a list of videos into a pack (see `data.packed`), in parallel, resumable and verified.

The list is cut into shards up front, so who writes which shard when has no influence on the result. A worker writes a
shard under a temporary name, reads it back and compares; this process then gives it its name and writes down what it
holds, which makes it finished. A kill at any moment loses the shards in work. `pack.json` is written last.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvdjax import __version__
from mvdjax.data import pack_state as state
from mvdjax.data import packed, pictures, shards, transcode
from mvdjax.data.pack_state import PackSpec
from mvdjax.data.progress import Progress
from mvdjax.data.shards import Check, Item, Job, Trouble
from mvdjax.data.sources import FileList, read_list
from mvdjax.data.watched import Failure, run_jobs
from mvdjax.errors import UserError

BAD = 'bad_videos.jsonl'


def write_pack(files: FileList, root: str, output: str, spec: PackSpec, progress: bool = True) -> dict[str, Any]:
    """Packs a list, or completes a pack that was interrupted.

    Args:
      files: the list.
      root: folder of the list's relative paths, for the paths to write down; '' is the list's own folder.
      output: the pack's folder: new, empty, or holding (part of) the same pack.
      spec: how.
      progress: whether to print.

    Returns:
      The contents of `pack.json`.

    Raises:
      UserError: the folder holds something else or is in work, it cannot be written, a shard reads back wrong, no file
        or too few are readable; with `strict` one is not. Except for the first, the same call goes on from the finished
        shards, and tries again what could not be reached.
    """
    folder, plan, items = Path(output), state.make_plan(files, root, spec), state.make_items(files, root)
    say = print if progress else lambda *_: None
    try:
        mendable = (
            state.can_be_mended(folder, plan, shard, chosen) for shard, chosen in enumerate(state.cut(plan, items))
        )
        if state.is_finished(folder, plan) and not any(mendable):
            state.check_strict(folder, plan, spec)
            say(f'The pack in {folder} is complete: nothing to do.')
            return packed.read_summary(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with state.only_one(folder):
            state.write_json(folder / state.UNFINISHED, plan)
            (folder / packed.SUMMARY).unlink(missing_ok=True)  # of shards that will be others
            (folder / 'records').mkdir(exist_ok=True)
            for left in (*folder.glob('.*.tmp'), *folder.glob('records/.*.tmp')):
                left.unlink()
            _write_shards(folder, plan, items, spec, progress)
            summary = _finish(folder, plan, files, spec)
    except OSError as error:
        raise UserError(
            f'the pack in {folder} cannot be written ({error.strerror or error}): give it room or the right to be '
            f'there. {state.standing(folder, plan)}'
        ) from error
    counts = summary['counts']
    say(
        f'The pack in {folder}: {counts["videos"]} videos, {counts["frames"]} frames, {counts["bytes"] / 1e6:.1f} MB '
        f'in {plan["shards"]} shards, all read back.'
    )
    if counts['bad']:
        say(f'{counts["bad"]} of {plan["listed"]} files could not be read and were left out: {folder / BAD} says why.')
    return summary


def verify_pack(folder: str, workers: int = 0, progress: bool = True) -> int:
    """Reads a finished pack: counts, the hash of every example, and its first and last frame.

    Returns:
      The number of videos.

    Raises:
      UserError: no finished pack, or one that does not hold what was written; the message names the first damage.
    """
    summary = packed.read_summary(folder)
    records = packed.read_pack(folder).records
    names = tuple(summary['class_names'])
    checks = []
    with contextlib.ExitStack() as stack:
        notes = stack.enter_context(_notes(summary['shards']))
        for shard in range(summary['shards']):
            content = packed.read_shard(folder, shard)
            assert content is not None  # read_pack has read it
            described = summary.get('pictures', {}).get(str(shard))
            listed = (str(Path(folder) / packed.pictures_name(shard)), described) if described else None
            file = str(Path(folder) / packed.shard_name(summary, shard))
            checks.append(Check(file, notes[shard], content, names, listed))
        with _watching('verified', notes, len(records), progress):
            for number, damage in run_jobs(shards.check_shard, checks, workers, shards.at_work):
                if isinstance(damage, Failure):
                    damage = damage.reason
                if damage:
                    raise UserError(
                        f'{checks[number].file} does not hold what was written: {damage}; copy the folder again'
                    )
    return len(records)


def _write_shards(folder: Path, plan: dict[str, Any], items: list[Item], spec: PackSpec, progress: bool) -> None:
    """Writes the shards that are not finished. A file that kills or hangs its worker is blamed and left out."""
    count, todo = plan['shards'], state.find_work(folder, plan, items, spec)
    state.check_strict(folder, plan, spec, todo)
    total = sum(len(chosen) for chosen in todo.values())
    if progress:
        done = f', of which {len(items) - total} are packed already' if len(todo) < count else ''
        print(f'Packing {len(items)} files as {plan["profile"]} into {count} shards in {folder}{done}.', flush=True)
    with _notes(count) as notes, _watching('packed', notes, total, progress):
        while todo:
            jobs = [
                Job(
                    file=str(folder / f'.{packed.shard_name(plan, shard)}.tmp'),
                    note=notes[shard],
                    items=tuple(chosen),
                    profile=plan['profile'],
                    short_side=plan['size'],
                    class_names=tuple(plan['class_names']),
                    strict=spec.strict,
                )
                for shard, chosen in todo.items()
            ]
            numbers, todo = list(todo), {}
            for number, answer in run_jobs(shards.write_shard, jobs, spec.workers, shards.at_work):
                shard, job = numbers[number], jobs[number]
                if isinstance(answer, Trouble):
                    raise UserError(f'{answer.text}. {state.standing(folder, plan)}')
                if isinstance(answer, Failure):
                    todo[shard] = _blamed(job, answer)
                    continue
                os.replace(job.file, folder / packed.shard_name(plan, shard))
                if job.profile == 'intra':
                    os.replace(shards.pictures_file(job.file), folder / packed.pictures_name(shard))
                state.write_json(folder / packed.records_name(shard), dataclasses.asdict(answer))


def _blamed(job: Job, failure: Failure) -> list[Item]:
    """The items of a job, the one at work when its process ended marked as not to be touched."""
    place = shards.read_note(job.note)
    if place >= len(job.items):
        raise UserError(f'{job.file} {failure.reason} while it was read back; start the same command again')
    items = list(job.items)
    items[place] = dataclasses.replace(items[place], blame=failure.reason)
    return items


def _finish(folder: Path, plan: dict[str, Any], files: FileList, spec: PackSpec) -> dict[str, Any]:
    """Counts, writes what describes the pack and opens it once as a reader will."""
    import tensorflow_datasets as tfds

    contents = [state.finished_shard(folder, plan, shard) for shard in range(plan['shards'])]
    finished = [content for content in contents if content is not None]
    records = [record for content in finished for record in content.records]
    bad = [entry for content in finished for entry in content.bad]
    if len(records) + len(bad) != plan['listed']:
        raise UserError(f'{folder} has lost shards while it was written; start the same command again')
    (folder / BAD).unlink(missing_ok=True)
    if bad:
        (folder / BAD).write_text(''.join(json.dumps(entry) + '\n' for entry in bad), encoding='utf-8')
    if not records:
        raise UserError(f'none of the {len(bad)} files of {files.path} could be read: {folder / BAD} says why')
    if len(bad) > spec.max_bad * plan['listed']:
        raise UserError(
            f'{len(bad)} of the {plan["listed"]} files of {files.path} could not be read, a larger share than '
            f'--max_bad_fraction={spec.max_bad:g}: {folder / BAD} says why; mend that and start the same command '
            'again, or allow a larger share'
        )
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=plan['name'], split=plan['split'], filetype_suffix='array_record'
    )
    size = sum(record['size'] for record in records)
    split = tfds.core.SplitInfo(
        name=plan['split'],
        shard_lengths=[len(content.records) for content in finished],
        num_bytes=size,
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=shards.features(tuple(plan['class_names'])),
        split_infos=[split],
        description=f'{files.path}, packed by mvdjax {__version__}: {transcode.settings(plan["profile"])}',
        check_data=False,  # that would need TensorFlow
    )
    summary = {
        **plan,
        'mvdjax': __version__,
        'list': files.path,
        'encoder': transcode.settings(plan['profile']),
        'shard_bytes': [content.size for content in finished],
        'shard_videos': [len(content.records) for content in finished],
        'pictures': {str(i): pictures.describe(folder / packed.pictures_name(i)) for i in range(plan['shards'])}
        if plan['profile'] == 'intra'
        else {},
        'counts': {
            'videos': len(records),
            'bad': len(bad),
            'frames': sum(record['frames'] for record in records),
            'bytes': size,
        },
    }
    state.write_json(folder / packed.SUMMARY, summary)
    source = packed.open_source(folder, plan['split'])
    if (len(source), source[len(source) - 1]['sha256'].decode()) != (len(records), records[-1]['sha256']):
        (folder / packed.SUMMARY).unlink()
        raise UserError(f'tensorflow-datasets reads another pack in {folder} than was written; please report this')
    (folder / state.UNFINISHED).unlink(missing_ok=True)
    return summary


@contextlib.contextmanager
def _notes(count: int) -> Iterator[list[str]]:
    """Names of files by which worker processes tell how far they are."""
    with tempfile.TemporaryDirectory(prefix='mvdjax-pack-') as folder:
        yield [os.path.join(folder, str(number)) for number in range(count)]


@contextlib.contextmanager
def _watching(what: str, notes: list[str], total: int, shown: bool) -> Iterator[None]:
    """Shows the progress that the notes tell of, while the block runs."""
    over = threading.Event()

    def watch() -> None:
        seen, ended = 0, False
        with Progress(what, total, shown) as bar:
            while not ended:
                ended = over.wait(0.5)
                count = sum(map(shards.read_note, notes))
                if count > seen:
                    bar.update(count=count - seen)
                    seen = count

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `mvdjax data pack`."""
    parser.add_argument('list', metavar='LIST', nargs='?', help='as data.files of a config')
    parser.add_argument(
        '--output', required=True, metavar='DIR', help='folder of the pack: new, or of an interrupted run'
    )
    parser.add_argument(
        '--profile',
        choices=transcode.PROFILES,
        help='copy: the files as they are; gop16: H.264, quicker to enter anywhere; intra: JPEG pictures, quickest and '
        'largest',
    )
    parser.add_argument(
        '--size', type=int, help=f'largest short side in pixels, 256 or 320 (default: {state.DEFAULT_SIZE})'
    )
    parser.add_argument('--root', default='', help='folder of relative paths (default: of the list)')
    parser.add_argument('--class_file', default='', help='class names, one on each line')
    parser.add_argument(
        '--name', default='', help='of the data set in tensorflow-datasets (default: the name of the list)'
    )
    parser.add_argument('--split', default=PackSpec.split, help='likewise (default: %(default)s)')
    parser.add_argument('--shards', type=int, default=0, help='number of files (default: by the length of the list)')
    parser.add_argument('--workers', type=int, default=0, help='processes (default: one per core)')
    parser.add_argument('--strict', action='store_true', help='stop at a file that cannot be read')
    parser.add_argument(
        '--max_bad_fraction',
        type=float,
        default=PackSpec.max_bad,
        help='share of unreadable files above which the pack is not finished (default: %(default)s)',
    )
    parser.add_argument('--verify', action='store_true', help='read a finished pack and compare, instead of packing')


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax data pack`; returns the exit status; raises UserError as `write_pack` and `verify_pack`."""
    if args.verify:
        videos = verify_pack(args.output, args.workers)
        print(f'The pack in {args.output} holds {videos} videos, all as written.')
        return 0
    if not args.list or not args.profile:
        raise UserError('mvdjax data pack needs a LIST and a --profile (copy, gop16 or intra)')
    spec = PackSpec(
        args.profile, args.size, args.name, args.split, args.shards, args.workers, args.strict, args.max_bad_fraction
    )
    write_pack(read_list(args.list, args.root, None, args.class_file), args.root, args.output, spec)
    return 0
