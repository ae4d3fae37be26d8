"""The folder that `mvdjax data pack` writes to: what it is to hold, how far it is, and who may touch it."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mvdjax.data import media, packed, transcode
from mvdjax.data.packed import Shard
from mvdjax.data.schema import FileList
from mvdjax.data.shards import Item
from mvdjax.errors import UserError

UNFINISHED = 'pack.unfinished.json'  # the plan, while it is being carried out
DEFAULT_SIZE = 320
# Videos per shard: 0.5 to 1.5 GB of ten-second videos. Each shard is a file that every reader holds open.
_PER_SHARD = {'copy': 1024, 'gop16': 512, 'intra': 256}
_LEAST_SHARDS = 16  # so that short lists keep several processes busy


@dataclasses.dataclass(frozen=True)
class PackSpec:
    """What to write.

    Attributes:
      profile: of `transcode.PROFILES`.
      size: largest short side in pixels, even; None is 320. 'copy' takes none.
      name: of the data set: lower case letters, digits and underscores, a letter first; '' takes the list's.
      split: likewise.
      shards: number of files; 0 chooses by the length of the list.
      workers: processes; 0 means one per core. It has no influence on what is written.
      strict: whether an unreadable file is an error.
      max_bad: largest share of unreadable files, from 0 to 1, that a finished pack may leave out.
    """

    profile: str
    size: int | None = None
    name: str = ''
    split: str = 'train'
    shards: int = 0
    workers: int = 0
    strict: bool = False
    max_bad: float = 0.1

    def __post_init__(self) -> None:
        """Refuses what makes no pack."""
        if self.profile not in transcode.PROFILES:
            raise UserError(f'there is no profile {self.profile!r}; choose one of {", ".join(transcode.PROFILES)}')
        if self.profile == 'copy' and self.size is not None:
            raise UserError('the profile copy keeps pictures as they are: leave --size out, or choose gop16 or intra')
        if self.size is not None and (self.size < 16 or self.size % 2):
            raise UserError(f'--size is an even number of pixels from 16 on, such as 256 or 320, not {self.size}')
        for option, value in (('name', self.name), ('split', self.split)):
            if value and not re.fullmatch('[a-z][a-z0-9_]*', value):
                raise UserError(f'--{option} is made of a-z, 0-9 and _ and starts with a letter, not {value!r}')
        if self.shards < 0 or self.workers < 0:
            raise UserError('--shards and --workers are numbers from 0 on')
        if not 0 <= self.max_bad <= 1:
            raise UserError(f'--max_bad_fraction is a share from 0 to 1, not {self.max_bad:g}')


def make_plan(files: FileList, root: str, spec: PackSpec) -> dict[str, Any]:
    """What determines the pack: the same plan in the same folder goes on, another is refused."""
    records = files.records
    labelled = [record.label >= 0 for record in records]
    if files.class_names and not all(labelled):
        line = records[labelled.index(False)].line
        raise UserError(f'{files.path}:{line}: there is no label, but there are class names; label all files or none')
    stem = re.sub('[^a-z0-9]+', '_', Path(files.path.split(':')[0]).stem.lower()).strip('_')
    default = max(-(-len(records) // _PER_SHARD[spec.profile]), _LEAST_SHARDS)
    digest = hashlib.sha256()
    for item in make_items(files, root):
        digest.update(f'{item.path}\n{item.label}\n'.encode())
    return {
        'format': packed.FORMAT,
        'profile': spec.profile,
        'encoding': transcode.VERSION,
        'size': 0 if spec.profile == 'copy' else spec.size or DEFAULT_SIZE,
        'name': spec.name or (stem if stem[:1].isalpha() else f'videos_{stem}'.rstrip('_')),
        'split': spec.split,
        'shards': min(spec.shards or default, len(records)),
        'listed': len(records),
        'list_sha256': digest.hexdigest(),
        'class_names': list(files.class_names),
    }


def make_items(files: FileList, root: str) -> list[Item]:
    """The lines of the list, with the paths as it has them: relative to the folder that the list counts from."""
    base = root or os.path.dirname(os.path.abspath(files.path))
    prefix = base.rstrip('/') + '/'
    return [Item(r.path, r.path.removeprefix(prefix), r.label, r.line) for r in files.records]


def is_finished(folder: Path, plan: dict[str, Any]) -> bool:
    """Whether the folder holds the whole pack.

    Raises:
      UserError: it holds something else.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f'{folder} is no folder; give another --output')
    for name in (packed.SUMMARY, UNFINISHED):
        if not (folder / name).exists():
            continue
        try:
            found = json.loads((folder / name).read_text())
        except ValueError:
            found = {}
        other = [key for key, value in plan.items() if found.get(key) != value]
        if other:
            what = ', '.join(f'{key} {_brief(found.get(key))} and not {_brief(plan[key])}' for key in other)
            raise UserError(
                f'{folder} holds a pack with {what}: give another --output, the same list and options as before, or '
                'delete the folder'
            )
        if name == packed.SUMMARY:
            with contextlib.suppress(UserError):
                packed.read_pack(str(folder))
                return True
        return False  # unfinished, or a shard has been lost
    if any(not path.name.startswith('.') for path in folder.iterdir()):
        raise UserError(f'{folder} is not empty and holds no pack; give another --output')
    return False


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f'{text[:37]}...'


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keeps a second process out of the folder; the kernel lets go of it when this one ends, however it does."""
    with open(folder / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f'another process is packing into {folder}; wait for it, or give another --output'
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all, and to the disk."""
    temporary = path.with_name(f'.{path.name}.tmp')
    with open(temporary, 'w', encoding='utf-8') as file:
        json.dump(content, file, ensure_ascii=False, indent=None if path.parent.name == 'records' else 2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def finished_shard(folder: Path, plan: dict[str, Any], shard: int) -> Shard | None:
    """What a shard holds, or None if it is not finished or its file is not the one that was written."""
    content, file = packed.read_shard(folder, shard), folder / packed.shard_name(plan, shard)
    return content if content and file.exists() and file.stat().st_size == content.size else None


def cut(plan: dict[str, Any], items: list[Item]) -> list[list[Item]]:
    """The items of each shard."""
    count = plan['shards']
    cuts = [round(len(items) * shard / count) for shard in range(count + 1)]
    return [items[cuts[shard] : cuts[shard + 1]] for shard in range(count)]


def can_be_mended(folder: Path, plan: dict[str, Any], shard: int, items: list[Item]) -> bool:
    """Whether a shard left out files for want of reaching them that are there now: storage is back, or --root right.

    A file that is still not there does not count: packing its shard again would change nothing.
    """
    content = finished_shard(folder, plan, shard)
    lines = {entry['line'] for entry in content.bad if not entry.get('reached')} if content else set()
    return any(media.exists(item.source) for item in items if item.line in lines)


def find_work(folder: Path, plan: dict[str, Any], items: list[Item], spec: PackSpec) -> dict[int, list[Item]]:
    """Shards to write, each with its items: unfinished ones, those to mend, and those with too many bad files."""
    todo = {}
    for shard, chosen in enumerate(cut(plan, items)):
        content = finished_shard(folder, plan, shard)
        too_bad = content is None or len(content.bad) > spec.max_bad * len(chosen)
        if too_bad or can_be_mended(folder, plan, shard, chosen):
            todo[shard] = chosen
    return todo


def check_strict(folder: Path, plan: dict[str, Any], spec: PackSpec, todo: Collection[int] = ()) -> None:
    """Refuses with UserError what a run without --strict has left out, but for the shards that are written again."""
    for shard in range(plan['shards'] if spec.strict else 0):
        content = finished_shard(folder, plan, shard) if shard not in todo else None
        for entry in content.bad if content else ():
            raise UserError(
                f'{entry["path"]} {entry["reason"]} (line {entry["line"]} of the list), and the pack in {folder} '
                'leaves it out: leave --strict out too, or mend the file and give another --output'
            )


def standing(folder: Path, plan: dict[str, Any]) -> str:
    """How far the pack is, for the end of a message."""
    done = sum(finished_shard(folder, plan, shard) is not None for shard in range(plan['shards']))
    return f'{done} of {plan["shards"]} shards are finished; start the same command again to go on'
