"""Where the bytes of a file are: the local disk, an object store, a packed data set, or one of tensorflow-datasets.

A local path stays a path and is opened by whoever reads it. `scheme://...` is fetched whole into memory through fsspec,
which needs a driver per scheme: gcsfs for gs://, s3fs for s3://. `file://...` is a local path again.
"""

import os
import re
import time

import fsspec

from mvdjax.data.decode import Blob, DecodeError, Pictures
from mvdjax.errors import UserError

VIDEO_SUFFIXES = (
    *('.mp4', '.m4v', '.mov', '.avi', '.webm', '.mkv', '.mpg', '.mpeg', '.ts', '.m2ts', '.wmv', '.flv', '.3gp', '.ogv'),
    *('.gif', '.mjpeg', '.mxf', '.vob'),
)
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
MAX_BYTES = 2**31  # of one fetched file: it is held in memory, once per decoding thread
TRIES = 3  # of a fetch: a store that is busy for a moment is not a bad file
_FINAL = (FileNotFoundError, PermissionError, ImportError, ValueError)  # trying again would not help
PACKED, PREPARED = 'pack', 'tfds'  # schemes of `data.packed` and of `data.datasets.tfds_images`
_URL = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+)://')  # two letters at least: C:// is a drive
_DRIVERS = {
    'gs': 'gcsfs',
    'gcs': 'gcsfs',
    's3': 's3fs',
    'az': 'adlfs',
    'abfs': 'adlfs',
    'http': 'aiohttp',
    'https': 'aiohttp',
}


def scheme(path: str) -> str:
    """'gs' of 'gs://bucket/file'; '' of a local path."""
    found = _URL.match(path)
    return found[1].lower() if found else ''


def join(folder: str, path: str) -> str:
    """`path`, taken from `folder` where it is relative. Both may be local or in an object store."""
    if scheme(path) or path.startswith('/'):
        return path
    if scheme(folder):
        return folder.rstrip('/') + '/' + path.removeprefix('./')
    return os.path.join(folder, path)


def absolute(path: str) -> str:
    """A path that means the same wherever a process stands."""
    return path if scheme(path) else os.path.abspath(path)


def folder_of(path: str) -> str:
    """The folder that a file lies in, absolute."""
    return absolute(path).rpartition('/')[0]


def fetch(path: str) -> str | Blob:
    """What `decode` reads: a local path as it is, anything else as bytes.

    Args:
      path: a local path, a URL that fsspec knows, `pack://FOLDER/SPLIT#INDEX` (see `data.packed`) or
        `tfds://NAME:SPLIT:FOLDER#INDEX` (see `data.datasets.tfds_images`).

    Raises:
      DecodeError: it cannot be fetched, three times over, is empty or is over 2 GiB.
    """
    kind = scheme(path)
    if not kind:
        return path
    if kind == 'file':
        return path[len('file://') :]
    if kind == PACKED:
        from mvdjax.data import packed

        return packed.read_blob(path)
    if kind == PREPARED:
        from mvdjax.data.datasets import tfds_images

        return tfds_images.read_blob(path)
    attempt = 0
    while True:
        attempt += 1
        try:
            return Blob(path, _download(path))
        except DecodeError:
            raise
        except Exception as error:  # each driver raises errors of its own, of which many pass
            if isinstance(error, _FINAL) or attempt == TRIES:
                raise DecodeError(path, f'cannot be fetched: {_reason(kind, error)}') from error
        time.sleep(2.0 ** (attempt - 1))


def fetch_clip(path: str) -> str | Blob | Pictures:
    """What `read_frames` reads of a file of which it needs few frames: `fetch`, or single pictures out of a pack.

    Raises:
      DecodeError: as `fetch`.
    """
    if scheme(path) == PACKED:
        from mvdjax.data import packed

        return packed.read_pictures(path) or packed.read_blob(path)
    return fetch(path)


def _download(path: str) -> bytes:
    """The bytes of a file in an object store; raises DecodeError, and whatever its driver raises."""
    system, name = fsspec.core.url_to_fs(path)
    info = system.info(name)  # one question for the two ways in which a file may be none to fetch
    if info.get('type') == 'directory':
        raise DecodeError(path, 'is a directory')
    if (size := info.get('size') or 0) > MAX_BYTES:
        raise DecodeError(path, f'is {size / 2**30:.1f} GiB, too large to fetch into memory; copy it to a local disk')
    data = system.cat_file(name)
    if not data:
        raise DecodeError(path, 'is empty')
    return data


def _reason(kind: str, error: Exception) -> str:
    """One line that says what went wrong, and which package would help where none is installed."""
    if isinstance(error, FileNotFoundError):
        return 'no such file'
    if isinstance(error, ImportError | ValueError) and kind not in fsspec.available_protocols():
        return f'there is no file system for {kind}://'
    if isinstance(error, ImportError):
        return f'{kind}:// needs the package {_DRIVERS.get(kind, "that fsspec names for it")}; pip install it'
    return ' '.join((str(error) or type(error).__name__).split())


def read_bytes(path: str, what: str) -> bytes:
    """A whole small file, such as a list.

    Args:
      path: local or in an object store.
      what: it is, for messages.

    Raises:
      UserError: it does not exist or cannot be read.
    """
    try:
        found = fetch(path)
        if isinstance(found, Blob):
            return found.data
        with open(found, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f'{what} {path} does not exist; check the path in the config') from None
    except DecodeError as error:
        raise UserError(f'{what} {path} {error.reason}; check the path in the config') from error
    except OSError as error:
        raise UserError(f'{what} {path} cannot be read as UTF-8 text ({error})') from error


def read_text(path: str, what: str) -> str:
    """A whole small text file in UTF-8, with or without a byte-order mark; as `read_bytes`."""
    try:
        return read_bytes(path, what).decode('utf-8-sig')  # -sig: Windows editors mark their files
    except UnicodeDecodeError as error:
        raise UserError(f'{what} {path} cannot be read as UTF-8 text ({error}); save it as UTF-8') from error


def exists(path: str) -> bool:
    """Whether there is such a file; False too where nobody can tell."""
    return _asked(path, 'isfile') if scheme(path) else os.path.exists(path)


def is_folder(path: str) -> bool:
    """Whether there is such a folder; False too where nobody can tell."""
    return _asked(path, 'isdir') if scheme(path) else os.path.isdir(path)


def _asked(path: str, question: str) -> bool:
    """What a store answers to one of fsspec's questions."""
    try:
        system, name = fsspec.core.url_to_fs(path)
        return bool(getattr(system, question)(name))
    except Exception:  # noqa: BLE001 - reading it will say what is wrong
        return False


def walk(folder: str) -> list[str]:
    """Every file under a folder, at any depth, as sorted paths relative to it. Hidden ones are left out.

    Raises:
      UserError: no such folder, or it cannot be read.
    """
    found: list[str] = []
    if scheme(folder):
        try:
            system, name = fsspec.core.url_to_fs(folder)
            top = name.rstrip('/') + '/'
            found = [path.removeprefix(top) for path in system.find(name)]
        except Exception as error:
            raise UserError(f'{folder} cannot be listed: {_reason(scheme(folder), error)}') from error
        return sorted(path for path in found if not any(part.startswith('.') for part in path.split('/')))
    if not os.path.isdir(folder):
        raise UserError(f'{folder} is not a folder; check the path')
    for place, folders, files in os.walk(folder, followlinks=True):  # data sets are often links into a shared disk
        if os.path.islink(place) and os.path.realpath(os.path.dirname(place)).startswith(os.path.realpath(place)):
            folders[:] = []  # a link to a folder that it lies in
            continue
        folders[:] = [name for name in folders if not name.startswith('.')]
        inside = os.path.relpath(place, folder)
        found += [name if inside == '.' else os.path.join(inside, name) for name in files if not name.startswith('.')]
    return sorted(found)
