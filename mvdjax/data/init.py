"""`mvdjax data init FOLDER`: the lists and class names of a folder of someone's own videos or images.

    FOLDER/CLASS/...               classes; a share of each is held out as val (and test)
    FOLDER/train/CLASS/..., val/   classes in splits that are made already; what is missing is held out of train
    FOLDER/...                     no sub-folders: lists without labels, to pretrain on

Which files are held out follows from a hash of the seed and the file's path: the same folder gives the same lists
everywhere, and files that are added later move few of the others from one list to another.
"""

import argparse
import csv
import dataclasses
import hashlib
import io
import os
import shlex
from collections.abc import Sequence

from mvdjax.data import media
from mvdjax.data.datasets import folders
from mvdjax.errors import UserError

CLASSES, SUMMARY_CLASSES = 'classes.txt', 12  # file of class names; classes that the table shows


@dataclasses.dataclass(frozen=True)
class Lists:
    """What was found in a folder.

    Attributes:
      class_names: in order; empty if there are no classes.
      splits: name -> (class, path below the folder) of each file.
      left_out: sentences about what is in no list.
    """

    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, str]]]
    left_out: tuple[str, ...]


def _media(files: Sequence[str], folder: str) -> tuple[list[str], list[str]]:
    """(the files to list, what is left out)."""
    videos = [file for file in files if file.lower().endswith(media.VIDEO_SUFFIXES)]
    images = [file for file in files if file.lower().endswith(media.IMAGE_SUFFIXES)]
    if not videos and not images:
        raise UserError(f'{folder} holds no video or image; give the folder whose sub-folders are the classes')
    if videos and images:
        return videos, [f'{len(images)} images (a list holds videos or images; there are {len(videos)} videos)']
    return videos or images, []


def _order(path: str, seed: int) -> bytes:
    return hashlib.sha256(f'{seed}/{path}'.encode(errors='surrogateescape')).digest()


def _hold_out(splits: dict[str, list[tuple[str, str]]], shares: dict[str, float], seed: int) -> None:
    """Moves a share of each class from train to each split: at least one file while there is one, never the last."""
    classes: dict[str, list[tuple[str, str]]] = {}
    for pair in splits['train']:
        classes.setdefault(pair[0], []).append(pair)
    splits['train'] = []
    for pairs in classes.values():
        pairs.sort(key=lambda pair: _order(pair[1], seed))
        left = list(pairs)
        for split, share in shares.items():
            count = min(len(left) - 1, max(1, round(share * len(pairs))))
            splits.setdefault(split, []).extend(left[:count])
            left = left[count:]
        splits['train'] += left


def find(folder: str, val: float = 0.1, test: float = 0.0, seed: int = 0) -> Lists:
    """Looks through a folder.

    Args:
      folder: local or in an object store.
      val: share of each class held out for validation, unless there is a folder of that name.
      test: likewise for a test.
      seed: of the choice.

    Raises:
      UserError: no folder, nothing to list, files beside the class folders, a name that no list can hold.
    """
    if not 0 <= val < 1 or not 0 <= test < 1 or val + test >= 1:
        raise UserError(f'--val and --test are shares that leave something to train on, not {val} and {test}')
    if not media.is_folder(folder):
        raise UserError(f'{folder} is not a folder; give the folder whose sub-folders are the classes')
    files, left_out = _media(media.walk(folder), folder)
    for file in files:
        if any(part != part.strip() or not part.isprintable() for part in file.split('/')):
            raise UserError(f'{folder}: the name {file!r} begins or ends with a space or is not plain text; rename it')
    tops = {file.split('/')[0] for file in files if '/' in file}
    splits: dict[str, list[tuple[str, str]]] = {'train': []}
    if tops and all(folders.split_of(top) for top in tops):
        for top in sorted(tops):
            inside = [file.removeprefix(f'{top}/') for file in files if file.startswith(f'{top}/')]
            _, pairs = folders.by_class(inside, media.join(folder, top))
            if not pairs:
                raise UserError(f'{media.join(folder, top)} has no sub-folders; put each file into that of its class')
            splits.setdefault(folders.split_of(top) or '', []).extend((name, f'{top}/{file}') for name, file in pairs)
        if not splits['train']:
            raise UserError(f'{folder} has no folder train beside {", ".join(sorted(tops))}; add it')
    else:
        names, pairs = folders.by_class(files, folder)
        splits['train'] = pairs or [('', file) for file in files]
    shares = {split: share for split, share in (('val', val), ('test', test)) if share and split not in splits}
    _hold_out(splits, shares, seed)
    names = tuple(sorted({name for pairs in splits.values() for name, _ in pairs} - {''}))
    return Lists(names, {name: sorted(pairs) for name, pairs in splits.items() if pairs}, tuple(left_out))


def write(lists: Lists, folder: str, output: str, overwrite: bool = False) -> dict[str, str]:
    """Writes the lists and the class names.

    Paths are relative where the lists lie in the folder itself, and whole elsewhere.

    Returns:
      {'train': path of the list, ..., 'classes': path of the names, if there are any}.

    Raises:
      UserError: a list is there already, or cannot be written.
    """
    if media.scheme(output):
        raise UserError(f'--output must be a local folder, not {output}')
    here = media.absolute(folder) == media.absolute(output)
    top = media.absolute(folder)
    numbers = {name: str(i) for i, name in enumerate(lists.class_names)}
    texts = {}
    for split, pairs in lists.splits.items():
        text = io.StringIO()
        table = csv.writer(text, lineterminator='\n')
        table.writerow(['path', 'label', 'class_name'] if numbers else ['path'])
        for name, file in pairs:
            path = file if here else media.join(top, file)
            table.writerow([path, numbers[name], name] if numbers else [path])
        texts[split] = (os.path.join(output, f'{split}.csv'), text.getvalue())
    if numbers:
        names = ''.join(f'{name}\n' for name in lists.class_names)
        texts['classes'] = (os.path.join(output, CLASSES), names)
    for path, _ in texts.values():
        if os.path.exists(path) and not overwrite:
            raise UserError(f'{path} exists; give another --output, or --overwrite to write it anew')
    try:
        os.makedirs(output, exist_ok=True)
        for path, content in texts.values():
            with open(path, 'w', encoding='utf-8', newline='') as list_file:
                list_file.write(content)
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(f'the lists cannot be written to {output} ({error}); give another --output') from error
    return {name: path for name, (path, _) in texts.items()}


def _missing(lists: Lists) -> list[str]:
    """What the lack of a list means."""
    if lists.class_names and 'val' not in lists.splits:
        return ['note: there is no val list, so nothing to evaluate on: no class has a file to spare, or --val=0']
    if lists.class_names and 'test' not in lists.splits:
        return [
            'note: there is no test list: own_videos.py scores "test" on val.csv, which is no test of a model '
            'chosen by it; --test=0.1 holds one out'
        ]
    return []


def describe(lists: Lists, paths: dict[str, str], output: str) -> str:
    """What was written, and what to do with it."""
    lines = []
    splits = list(lists.splits)
    if lists.class_names:
        counts = {name: dict.fromkeys(lists.class_names, 0) for name in splits}
        for split, pairs in lists.splits.items():
            for name, _ in pairs:
                counts[split][name] += 1
        width = max(5, *(len(name) for name in lists.class_names))
        lines.append(f'{"class":{width}} ' + ' '.join(f'{split:>8}' for split in splits))
        for name in lists.class_names[:SUMMARY_CLASSES]:
            lines.append(f'{name:{width}} ' + ' '.join(f'{counts[split][name]:8}' for split in splits))
        if len(lists.class_names) > SUMMARY_CLASSES:
            lines.append(f'... and {len(lists.class_names) - SUMMARY_CLASSES} more')
        few = [name for name in lists.class_names if any(counts[split][name] == 0 for split in splits)]
        if few:
            lines.append(f'note: {len(few)} classes are not in every list, such as {few[0]}; more files would help')
    lines += _missing(lists)
    lines += [f'note: left out: {text}' for text in lists.left_out]
    lines += [f'{path}: {len(lists.splits[name])} files' for name, path in paths.items() if name != 'classes']
    if lists.class_names:
        lines += [
            f'{paths["classes"]}: {len(lists.class_names)} classes',
            '',
            'fine-tune a classifier on them:',
            f'  mvdjax train {shlex.quote(f"--config=configs/finetune/own_videos.py:{output}")} --workdir=runs/own \\',
            '      --config.init.checkpoint=runs/student',
            'or in any other fine-tuning config:',
            f'  c.data.files, c.data.class_file = {paths["train"]!r}, {paths["classes"]!r}',
            f'  c.data.num_classes = c.task.num_classes = {len(lists.class_names)}',
        ]
    else:
        lines += ['', 'there are no sub-folders, so no classes; pretrain on the list:']
        lines += [f'  c.data.files = {paths["train"]!r}']
    return '\n'.join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax data init`."""
    parser.add_argument('folder', metavar='FOLDER', help='its sub-folders are the classes')
    parser.add_argument('--output', help='folder of the lists (default: FOLDER)')
    parser.add_argument('--val', type=float, default=0.1, help='share of each class for validation (default: 0.1)')
    parser.add_argument('--test', type=float, default=0.0, help='share of each class for a test (default: 0)')
    parser.add_argument('--seed', type=int, default=0, help='of the choice of those (default: 0)')
    parser.add_argument('--overwrite', action='store_true', help='write lists that exist anew')


def run(args: argparse.Namespace) -> int:
    """Writes the lists and says what to do with them."""
    output = args.output or args.folder
    lists = find(args.folder, args.val, args.test, args.seed)
    print(describe(lists, write(lists, args.folder, output, args.overwrite), output))
    return 0
