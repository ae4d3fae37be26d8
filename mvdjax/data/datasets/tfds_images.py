"""Images prepared by tensorflow-datasets: 'tfds:imagenet2012:train:/data/tfds'. Needs the ArrayRecord format.

The records are read one by one where they lie, and the images stay encoded until a recipe decodes them. A record's
label stands inside it, so labels cost one pass over the data; it is made where labels are needed and kept in a file
beside the data, or made again where that cannot be written.
"""

import contextlib
import functools
import os
import zipfile
from typing import Any

import numpy as np

from mvdjax.data.decode import Blob, DecodeError
from mvdjax.data.schema import Record
from mvdjax.data.sources import NO_LABEL, FileList
from mvdjax.errors import UserError

PREFIX = 'tfds:'
_PREPARE = 'prepare it with tfds.builder({0!r}, file_format="array_record").download_and_prepare()'


def _builder(name: str, folder: str) -> Any:
    """The prepared data set.

    Raises:
      UserError: there is none, or it has no images.
    """
    import tensorflow_datasets as tfds  # takes a second, and only these data sets need it

    try:
        builder = tfds.builder(name, data_dir=folder or None, try_gcs=False)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        reason = str(error).split('\n')[0]
        raise UserError(f'tensorflow-datasets has no {name} in {folder or "its folder"}: {reason}') from error
    if not builder.is_prepared():
        raise UserError(f'{name} is not prepared in {builder.data_path}; ' + _PREPARE.format(name))
    _feature(builder)
    return builder


def _feature(builder: Any) -> str:
    """The name of the image in a record."""
    import tensorflow_datasets as tfds

    names = [name for name, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]
    if not names:
        raise UserError(f'{builder.info.full_name} has no images; it has {", ".join(builder.info.features)}')
    return names[0]


@functools.lru_cache(maxsize=8)
def _source(name: str, split: str, folder: str) -> tuple[Any, str]:
    """(random access to the records, name of the image in them)."""
    import tensorflow_datasets as tfds

    builder = _builder(name, folder)
    feature = _feature(builder)
    try:
        source = builder.as_data_source(split=split, decoders={feature: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise UserError(
            f'{name} in {builder.data_path} is not in the ArrayRecord format, so it cannot be read at random; '
            + _PREPARE.format(name)
        ) from error
    except ValueError as error:
        raise UserError(f'{name}: {str(error).splitlines()[0]}') from error
    return source, feature


def read(name: str, split: str, folder: str, labels: bool) -> FileList:
    """The records of a split. Their labels are read only if they are needed.

    Raises:
      UserError: no such data set or split, another format, no labels in it where they are needed.
    """
    source, _ = _source(name, split, folder)
    builder = _builder(name, folder)
    feature = dict(builder.info.features.items()).get('label')
    names = tuple(getattr(feature, 'names', None) or ())
    numbers = [NO_LABEL] * len(source)
    if labels:
        if feature is None:
            raise UserError(f'{name} has no feature "label"; it has {", ".join(builder.info.features)}')
        made_of = _identity(builder, split)
        numbers = _labels(source, made_of, os.path.join(str(builder.data_path), f'mvdjax_labels_{split}.npz'))
    where = f'{PREFIX}//{name}:{split}:{folder}'
    records = tuple(Record(f'{where}#{i}', int(label), i + 1) for i, label in enumerate(numbers))
    return FileList(f'{PREFIX}{name}:{split}', records, names)


def _identity(builder: Any, split: str) -> str:
    """What a split is read from: of each file the name, the records, the size and the time of its last change."""
    parts = []
    for part in builder.info.splits[split].file_instructions:
        with contextlib.suppress(OSError):
            stat = os.stat(part.filename)
            name = os.path.basename(part.filename)
            parts.append(f'{name} {part.skip} {part.take} {stat.st_size} {stat.st_mtime_ns}')
    return '\n'.join(parts)


def _labels(source: Any, made_of: str, path: str) -> list[int]:
    """The label of every record; from the file `path` if that was made of the same records."""
    with contextlib.suppress(OSError, ValueError, LookupError, zipfile.BadZipFile), np.load(path) as known:
        if made_of and str(known['made_of']) == made_of and len(known['labels']) == len(source):
            return known['labels'].tolist()
    labels = [int(source[i]['label']) for i in range(len(source))]
    with contextlib.suppress(OSError):  # it can be made again
        part = f'{path}.{os.getpid()}.npz'
        np.savez(part, labels=np.asarray(labels, np.int32), made_of=np.array(made_of))
        os.replace(part, path)
    return labels


def read_blob(path: str) -> Blob:
    """The encoded image of a record's path.

    Raises:
      DecodeError: it cannot be read.
    """
    where, _, number = path.removeprefix(f'{PREFIX}//').rpartition('#')
    name, split, folder = where.split(':', 2)
    try:
        source, feature = _source(name, split, folder)
        return Blob(path, source[int(number)][feature])
    except (UserError, RuntimeError, ValueError, LookupError, OSError) as error:
        raise DecodeError(path, f'cannot be fetched: {" ".join(str(error).split())}') from error
