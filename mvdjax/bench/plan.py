"""What `mvdjax bench loader` measures: which way, on which videos, beside what."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mvdjax.bench import peer_decord, videos
from mvdjax.bench.measure import Candidate, Result, interleaved
from mvdjax.data.sources import FileList, read_list
from mvdjax.errors import UserError

LENGTH = 16
MASK = {'kind': 'tube', 'ratio': 0.9}
# The published fine-tuning: two augmentations of each decoded clip.
RAND_AUGMENT, VIEWS = 'rand-m7-n4-mstd0.5-inc1', 2
# A batch of the whole pipeline takes longer than one batch made in place: this many are timed at once.
PIPELINE_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Job:
    """One row of the report.

    Attributes:
        part: of `loader.PARTS`.
        videos: what is read, in words.
        way: how, in words.
        candidate: what runs.
        peer: name of the candidate that does the same as the published loader does, or ''.
        ffmpeg: name of the candidate that only decodes the same packets, or ''.
    """

    part: str
    videos: str
    way: str
    candidate: Candidate
    peer: str = ''
    ffmpeg: str = ''


@dataclasses.dataclass(frozen=True)
class _Source:
    """A list, its name in the report, and the distance of a clip's frames."""

    name: str
    files: FileList
    stride: int


def make_plan(args: argparse.Namespace) -> list[Job]:
    """The jobs that the arguments ask for; makes the videos that are missing.

    Raises:
        UserError: the peer or the list cannot be read, or the videos cannot be written.
    """
    if args.peer:
        peer_decord.video_reader()
    sources, packed = _own(args.videos) if args.videos else _made(args)
    jobs: list[Job] = []
    if 'distil' in args.parts:
        for source in sources:
            jobs += _distil(args, source, sources[0].name)
        for source in packed:
            jobs += _packed(args, source, sources[0].name)
    if 'finetune' in args.parts:
        for source in (sources[0], *packed):
            jobs += _finetune(args, source, sources[0].name)
    if 'workers' in args.parts:
        jobs += _workers(args, sources[0])
    return jobs


def _own(path: str) -> tuple[list[_Source], list[_Source]]:
    return [_Source(Path(path).name, read_list(path), 4)], []


def _made(args: argparse.Namespace) -> tuple[list[_Source], list[_Source]]:
    """Kinetics-like and Something-Something-like files, and the former as packs store them."""
    folder = Path(args.cache).expanduser()
    try:
        with tqdm(total=4, desc='videos', unit='set', disable=None) as bar:
            lists = {}
            for name in ('kinetics', 'ssv2'):
                lists[name] = videos.write_videos(folder, name, args.count)
                bar.update()
            for profile in ('gop16', 'intra'):
                lists[profile] = videos.write_packed(folder, 'kinetics', args.count, profile)
                bar.update()
    except OSError as error:
        raise UserError(f'the videos cannot be written to {folder} ({error}); give another --cache') from error
    read = {name: read_list(str(path)) for name, path in lists.items()}
    return (
        [_Source('kinetics', read['kinetics'], 4), _Source('ssv2', read['ssv2'], 2)],
        [_Source(f'kinetics {profile}', read[profile], 4) for profile in ('gop16', 'intra')],
    )


def _options(args: argparse.Namespace, stride: int, **more: Any) -> dict[str, Any]:
    return {'size': args.size, 'patch': (2, 16, 16), 'mask': MASK, 'length': LENGTH, 'stride': stride, **more}


def _ours(name: str, source: _Source, recipe: str, options: Mapping[str, Any], batch: int) -> Candidate:
    arguments = {'files': source.files, 'recipe': recipe, 'options': options, 'batch': batch}
    return Candidate(name, 'mvdjax.bench.ways:ours', arguments)


def _distil(args: argparse.Namespace, source: _Source, first: str) -> list[Job]:
    """Our loader, FFmpeg and the peer on files; for the first source with a second teacher size, too."""
    clip = {'files': source.files, 'length': LENGTH, 'stride': source.stride, 'batch': args.batch}
    jobs = []
    for second in (0, args.size * 7 // 8) if source.name == first else (0,):
        suffix = f'{source.name}, {second}' if second else source.name
        sizes = f'{args.size} and {second}' if second else f'{args.size}'
        peer = f'decord: {suffix}' if args.peer else ''
        for mode in ('exact', 'fast'):
            options = _options(args, source.stride, teacher_size=second, resize=mode)
            way = f'ours {sizes} {mode}'
            candidate = _ours(f'{way}: {source.name}', source, 'pretrain', options, args.batch)
            jobs.append(Job('distil', source.name, way, candidate, peer, f'ffmpeg: {source.name}'))
        if peer:
            pair = (args.size, second or args.size)
            candidate = Candidate(peer, 'mvdjax.bench.ways:decord', {**clip, 'sizes': pair})
            jobs.append(Job('distil', source.name, f'decord + PIL {sizes}', candidate, peer, f'ffmpeg: {source.name}'))
        if peer and source.name == first and not second:
            # How much of the difference is our setting of the allocator and not our loader.
            candidate = Candidate(f'{peer}, tuned', 'mvdjax.bench.ways:decord', {**candidate.arguments, 'tuned': True})
            way = f'decord + PIL {sizes}, memory kept as ours'
            jobs.append(Job('distil', source.name, way, candidate, peer, f'ffmpeg: {source.name}'))
    candidate = Candidate(f'ffmpeg: {source.name}', 'mvdjax.bench.ways:ffmpeg', clip)
    return [*jobs, Job('distil', source.name, 'FFmpeg, decoding only', candidate, '', candidate.name)]


def _packed(args: argparse.Namespace, source: _Source, first: str) -> list[Job]:
    """Our loader on packed copies of the first source's videos, beside the peer on the files themselves."""
    jobs = []
    for mode in ('exact', 'fast'):
        way = f'ours {args.size} {mode}'
        candidate = _ours(
            f'{way}: {source.name}', source, 'pretrain', _options(args, source.stride, resize=mode), args.batch
        )
        peer = f'decord: {first}' if args.peer else ''
        jobs.append(Job('distil', source.name, way, candidate, peer))
    return jobs


def _finetune(args: argparse.Namespace, source: _Source, first: str) -> list[Job]:
    """Our fine-tuning loader both ways, on the first source beside the peer, too."""
    clip = {'size': args.size, 'length': LENGTH, 'stride': source.stride, 'views': VIEWS}
    options = {**clip, 'rand_augment': RAND_AUGMENT, 'erasing': peer_decord.ERASING, 'flip': peer_decord.FLIP}
    peer = f'decord, {VIEWS} views: {first}' if args.peer else ''
    jobs = []
    for mode in ('exact', 'fast'):
        candidate = _ours(
            f'finetune {mode}: {source.name}', source, 'finetune', {**options, 'rand_augment_mode': mode}, args.batch
        )
        jobs.append(Job('finetune', source.name, f'ours, RandAugment {mode}', candidate, peer))
    if peer and source.name == first:
        arguments = {**clip, 'files': source.files, 'spec': RAND_AUGMENT, 'batch': args.batch}
        candidate = Candidate(peer, 'mvdjax.bench.ways:decord_views', arguments)
        jobs.append(Job('finetune', source.name, 'decord + PIL, float frames', candidate, peer))
    return jobs


def _workers(args: argparse.Namespace, source: _Source) -> list[Job]:
    jobs = []
    for count in args.workers:
        arguments = {
            'files': source.files,
            'recipe': 'pretrain',
            'options': _options(args, source.stride),
            'batch': args.batch,
            'batches': PIPELINE_BATCHES,
            'count': count,
        }
        plural = 's' if count > 1 else ''
        for way, factory in (
            (f'{count} worker{plural}', 'workers'),
            (f'no pipeline, {count} process' + plural.replace('s', 'es'), 'apart'),
        ):
            candidate = Candidate(f'{way}: {source.name}', f'mvdjax.bench.ways:{factory}', arguments)
            jobs.append(Job('workers', source.name, way, candidate))
    return jobs


def measure_part(jobs: Sequence[Job], part: str, repeats: int) -> dict[str, Result]:
    """Runs a part's candidates interleaved; results by candidate name. A bar on a terminal, lines elsewhere."""
    candidates = [job.candidate for job in jobs if job.part == part]
    lines = not sys.stderr.isatty()
    with tqdm(total=len(candidates) * (repeats + 1), desc=part, unit='batch', disable=lines) as bar:

        def progress(name: str, batch: int) -> None:
            if lines and name == candidates[0].name:
                print(f'{part}: round {batch} of {repeats}' if batch else f'{part}: warming up', flush=True)
            bar.set_postfix_str(name)
            bar.update()

        return interleaved(candidates, repeats, progress, settle=part != 'workers')
