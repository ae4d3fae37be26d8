"""`mvdjax data check`: decodes every file of a list once and says what is wrong, before training finds out.

Writes to the output folder

    check.json     everything that was found, see `SCHEMA`; `mvdjax data stats` shows it
    problems.txt   one line for every problem, as on the screen, but all of them
    <list>         each list without what is wrong, to train with; <list>_classes.txt where only it named the classes
    cache.jsonl    what is known of each file: a second run decodes only what is new or has changed
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mvdjax import __version__
from mvdjax.data import check_report as report
from mvdjax.data.check_cache import Cache, decoder
from mvdjax.data.check_list import CheckedList, read_whole, write_clean
from mvdjax.data.check_text import errors, problems, summary, warnings
from mvdjax.data.examine import Facts, Job, examine
from mvdjax.data.media import IMAGE_SUFFIXES
from mvdjax.data.progress import Progress
from mvdjax.data.watched import Failure, run_jobs
from mvdjax.errors import UserError

SCHEMA = 1
"""Of check.json; raised with every change that a reader would have to know of.

    schema, written_by, decoder     this number; the program; the libraries that decoded
    full                            whether every frame was decoded
    frames                          the clip length below which a video is short
    lists                           in the order given, each with
        path, image                 the list, and whether it lists images
        root, relative              the folder of relative paths, and whether there are any
        files, good                 listed, usable
        clean, kept                 path of the list without what is wrong, and how many files it lists
        class_file                  of its class names; '' if there are none
        bad_lines                   {line, text, problem}: lines that mean nothing
        bad_files                   {line, path, problem}: files that cannot be used
        odd_files                   {line, path, note}: files that can, with something to know about them
        short_files                 {line, path, frames}: videos with fewer than `frames`
        duplicates                  see `check_report.duplicates`
        classes                     {label, name, files, good} of every class
        hashes                      {content, order}, see `check_report.hashes`
        totals                      see `check_report.totals`
    leaks                           see `check_report.leaks`; `lists` are places in `lists`
    files                           {path, listed, ...} of every file, see `examine.Facts`; `listed` has [place in
                                    `lists`, line, label] of every line that names it
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to check.

    Attributes:
      root: folder of relative paths, as `data.root` of a config.
      class_file: as `data.class_file`.
      num_classes: as `data.num_classes`.
      full: decode every frame, not only the first.
      frames: videos with fewer are told; 0: none are.
      media: 'video', 'image', or 'auto': what most names of a list say.
      workers: decoding processes; 0 means one per core.
      patience: seconds without progress after which a decoder is given up.
    """

    root: str = ''
    class_file: str = ''
    num_classes: int | None = None
    full: bool = True
    frames: int = 0
    media: str = 'auto'
    workers: int = 0
    patience: float = 60.0

    def __post_init__(self) -> None:
        """Refuses counts that cannot be."""
        if self.workers < 0 or self.frames < 0:
            raise UserError('--workers and --frames must be at least 0')
        if self.patience <= 0:
            raise UserError(f'--patience must be above 0 seconds, not {self.patience}')


def check(paths: Sequence[str], output: str, options: Options = Options(), progress: bool = True) -> dict[str, Any]:
    """Checks lists and writes what it finds.

    Args:
      paths: lists, training before evaluation: of a file in two lists the earlier one loses its line.
      output: folder to write to; made if it is not there.
      options: how.
      progress: whether to print how far it is.

    Returns:
      What check.json holds.

    Raises:
      UserError: a list that cannot be read at all, or one given twice.
      OSError: the output cannot be written.
    """
    if len({os.path.abspath(path) for path in paths}) < len(paths):
        raise UserError('a list is given twice; give each list once')
    lists = [read_whole(path, options.root, options.num_classes, options.class_file) for path in paths]
    images = [_are_images(checked, options.media) for checked in lists]
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    clean_paths = list(_clean_paths(paths, folder))
    kinds: dict[str, bool] = {}
    listed: dict[str, list[list[int]]] = defaultdict(list)
    for number, (checked, image) in enumerate(zip(lists, images, strict=True)):
        for record in checked.files.records:
            kinds.setdefault(record.path, image)
            listed[record.path].append([number, record.line, record.label])
    found = _gather(kinds, folder / 'cache.jsonl', options, progress)
    leaks = report.leaks(lists, found)
    described = []
    for number, (checked, image, clean) in enumerate(zip(lists, images, clean_paths, strict=True)):
        values = _describe(checked, image, found, options)
        leaked = {leak['lines'][0] for leak in leaks if leak['lists'][0] == number}
        values['clean'] = os.fspath(clean)
        values['class_file'] = options.class_file or _write_classes(checked, clean)
        values['kept'] = write_clean(checked, {*leaked, *(bad['line'] for bad in values['bad_files'])}, clean)
        described.append(values)
    result = {
        'schema': SCHEMA,
        'written_by': f'mvdjax {__version__} data check',
        'decoder': decoder(),
        'full': options.full,
        'frames': options.frames,
        'lists': described,
        'leaks': leaks,
        'files': [_entry(path, listed[path], found[path]) for path in kinds],
    }
    _write_json(result, folder / 'check.json')
    (folder / 'problems.txt').write_text(''.join(f'{line}\n' for line in problems(result)), encoding='utf-8')
    return result


def _are_images(checked: CheckedList, media: str) -> bool:
    if media != 'auto':
        return media == 'image'
    records = checked.files.records
    return 2 * sum(r.path.lower().endswith(IMAGE_SUFFIXES) for r in records) > len(records)


def _gather(kinds: dict[str, bool], cache_file: Path, options: Options, progress: bool) -> dict[str, Facts]:
    """The facts of every file ({path: whether it should be an image}), from the cache or from workers."""
    found: dict[str, Facts] = {}
    with Cache(cache_file, options.full) as cache:
        for path, image in kinds.items():
            known = cache.get(path, image)
            if known is not None:
                found[path] = known
        if progress and found:
            print(f'{len(found)} of {len(kinds)} files are known from {cache_file}', flush=True)
        missing = [path for path in kinds if path not in found]
        jobs = [
            Job(path, kinds[path], options.full, options.patience, cache.similar(path, kinds[path])) for path in missing
        ]
        bad = 0
        with Progress('checked', len(jobs), progress) as bar:
            for number, answer in run_jobs(examine, jobs, options.workers, lambda job: job.path):
                path = missing[number]
                if isinstance(answer, Failure):
                    found[path] = Facts(problem=answer.reason)
                else:
                    found[path] = answer
                    cache.add(path, kinds[path], answer)
                bad += bool(found[path].problem)
                bar.update(f'{bad} bad')
    return found


def _clean_paths(paths: Sequence[str], folder: Path) -> Iterator[Path]:
    """Where each list's clean copy goes; lists of the same name get a number."""
    taken = {'check.json', 'problems.txt', 'cache.jsonl'}
    for path in paths:
        name = Path(path.rstrip('/').replace(':', '_')).name
        name = name if Path(name).suffix else f'{name}.txt'
        stem, suffix = os.path.splitext(name)
        free = next(n for n in (name, *(f'{stem}-{i}{suffix}' for i in range(2, len(paths) + 5))) if n not in taken)
        taken.add(free)
        target = folder / free
        if target.exists() and os.path.exists(path) and target.samefile(path):
            raise UserError(f'the clean copy of {path} would replace it: give another --output')
        yield target


def _write_classes(checked: CheckedList, clean: Path) -> str:
    """Class names that only the list itself told: a class without a file in the clean one would renumber the others."""
    if not checked.files.class_names:
        return ''
    path = clean.with_name(f'{clean.stem}_classes.txt')
    path.write_text(''.join(f'{name}\n' for name in checked.files.class_names), encoding='utf-8')
    return os.fspath(path)


def _describe(checked: CheckedList, image: bool, found: dict[str, Facts], options: Options) -> dict[str, Any]:
    """An entry of `lists`, but for its clean copy."""
    records = checked.files.records
    bad = report.bad_files(records, found)
    return {
        'path': checked.files.path,
        'root': checked.root,
        'relative': checked.relative,
        'image': image,
        'files': len(records),
        'good': len(records) - len(bad),
        'bad_lines': [dataclasses.asdict(line) for line in checked.bad_lines],
        'bad_files': bad,
        'odd_files': report.odd_files(records, found),
        'short_files': report.short_files(records, found, 0 if image else options.frames),
        'duplicates': report.duplicates(records, found),
        'classes': report.classes(checked, found, options.num_classes),
        'hashes': report.hashes(records, found),
        'totals': report.totals([r.path for r in records], found),
    }


def _entry(path: str, listed: list[list[int]], facts: Facts) -> dict[str, Any]:
    """An entry of `files`."""
    return {'path': path, 'listed': listed, **vars(facts), 'notes': list(facts.notes)}


def _write_json(result: dict[str, Any], path: Path) -> None:
    """Writes check.json whole or not at all, a file's facts on a line of their own."""
    head = json.dumps({name: value for name, value in result.items() if name != 'files'}, indent=1)[:-2]
    files = ',\n'.join(json.dumps(entry) for entry in result['files'])
    temporary = path.with_name(f'.{path.name}.tmp')
    temporary.write_text(f'{head},\n "files": [\n{files}\n]}}\n', encoding='utf-8')
    os.replace(temporary, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax data check`."""
    default = Options()
    parser.add_argument('lists', nargs='+', metavar='LIST', help='as data.files of a config; training lists first')
    parser.add_argument('--output', default='check', metavar='DIR', help='folder to write to (default: ./%(default)s)')
    parser.add_argument('--root', default=default.root, help='folder of relative paths (default: of the list)')
    parser.add_argument('--class_file', default=default.class_file, help='class names, one on each line')
    parser.add_argument('--num_classes', type=int, help='labels must be below it (default: what the names say)')
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument('--full', action='store_true', default=True, help='decode every frame (the default)')
    depth.add_argument('--quick', action='store_false', dest='full', help='read the index and decode the first frame')
    parser.add_argument(
        '--frames', type=int, default=default.frames, help='tell of videos with fewer: length x stride of a clip'
    )
    parser.add_argument('--media', choices=('auto', 'video', 'image'), default=default.media, help='what is listed')
    parser.add_argument('--workers', type=int, default=default.workers, help='processes, 0 for one per core')
    parser.add_argument(
        '--patience',
        type=float,
        default=default.patience,
        metavar='SECONDS',
        help='without progress, after which a file counts as bad (default: %(default)s)',
    )
    parser.add_argument('--strict', action='store_true', help='exit with 1 for warnings too')


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax data check`; 0: nothing is wrong, 1: something is (with --strict, or odd)."""
    options = Options(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Options)})
    start = time.perf_counter()
    try:
        result = check(args.lists, args.output, options)
    except OSError as error:
        raise UserError(
            f'{error.filename or args.output} cannot be written ({error.strerror or error}): give another --output, or '
            'room'
        ) from error
    for line in summary(result, os.path.join(args.output, 'problems.txt')):
        print(line)
    wrong, odd = (sum(map(len, found(result).values())) for found in (errors, warnings))
    print(
        f'{len(result["files"])} files, {wrong} errors, {odd} warnings, {time.perf_counter() - start:.1f} s; '
        f'see {os.path.join(args.output, "check.json")}'
    )
    return int(bool(wrong or (args.strict and odd)))
