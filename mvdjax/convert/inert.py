"""Whole PyTorch modules, as `torch.save(module)` pickled them, read without their classes and without running them.

Unpickling such a file asks for its classes by name and calls what it names. Here every name is answered by this
module alone: classes of modules by inert stand-ins that keep the attributes they are given, tensors by a note of where
their values lie, an ordered dict and a set by themselves; any other name ends the reading. What a file can reach has
no attributes that it could change. So nothing that a file can say runs code, whatever it holds.

PyTorch's own restricted reader (`weights_only`) takes no modules in the older format, and in the newer one only those
whose classes are there. Here neither PyTorch nor the original package is needed.
"""

import functools
import io
import math
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mvdjax.convert.files import Source
from mvdjax.convert.layouts import Shape
from mvdjax.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of PyTorch's format before 1.6, its first pickled value
LEGACY_PROTOCOL = 1001


class _Kind(NamedTuple):
    """Of a storage. A tuple, like all that a file gets hold of: unpickling can write into other objects."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """Values in the file, one after the other."""

    dtype: np.dtype
    key: str
    values: int


class _Tensor(NamedTuple):
    """A contiguous part of a storage."""

    storage: _Storage
    offset: int
    shape: Shape


class Inert:
    """A stand-in: it takes any arguments and any state, and does nothing with them."""

    def __new__(cls, *_: Any) -> 'Inert':
        """An instance, arguments forgotten."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        """Nothing to do."""


class _RebuildTensor:
    """What a file calls torch._utils._rebuild_tensor_v2. Without attributes that a file could set."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
        """The note of a tensor. Raises pickle.UnpicklingError."""
        sizes = (*shape, *stride, offset)
        if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in sizes):
            raise pickle.UnpicklingError('it has a tensor that is none')
        expected = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        if any(s != e for n, s, e in zip(shape, stride, expected, strict=True) if n > 1):
            raise pickle.UnpicklingError('it has a tensor whose values do not lie one after the other')
        if offset + math.prod(shape) > storage.values:
            raise pickle.UnpicklingError('it has a tensor that is longer than its storage')
        return _Tensor(storage, offset, tuple(shape))


class _RebuildParameter:
    """What a file calls torch._utils._rebuild_parameter: the tensor itself."""

    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        """The tensor."""
        return data


KNOWN: dict[str, Any] = {
    'collections.OrderedDict': OrderedDict,
    'builtins.set': set,
    '__builtin__.set': set,  # its name in Python 2, which pickles of protocol 2 keep
    'torch._utils._rebuild_tensor_v2': _RebuildTensor(),
    'torch._utils._rebuild_parameter': _RebuildParameter(),
    'torch.FloatStorage': _Kind(np.dtype('<f4')),
    'torch.DoubleStorage': _Kind(np.dtype('<f8')),
    'torch.HalfStorage': _Kind(np.dtype('<f2')),
    'torch.BFloat16Storage': _Kind(np.dtype(ml_dtypes.bfloat16)),
    'torch.LongStorage': _Kind(np.dtype('<i8')),
    'torch.IntStorage': _Kind(np.dtype('<i4')),
    'torch.BoolStorage': _Kind(np.dtype('?')),
}


class _Unpickler(pickle.Unpickler):
    """Answers every name and every storage that a file asks for."""

    def __init__(self, file: Any, packages: str) -> None:
        """`packages`: regex of the modules whose classes get stand-ins."""
        super().__init__(file, encoding='utf-8')
        self._packages = packages
        self._classes: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in.

        Raises:
          pickle.UnpicklingError: a name that a module's file has no need of.
        """
        full = f'{module}.{name}'
        if full in KNOWN:
            return KNOWN[full]
        if full == 'torch.device' or (re.fullmatch(self._packages, module) and name.isidentifier()):
            return self._classes.setdefault(full, type(name, (Inert,), {}))
        raise pickle.UnpicklingError(f'it asks for {full}')

    def persistent_load(self, pid: Any) -> Any:
        """A storage; or a class, which PyTorch's older format wraps with its source code."""
        match pid:
            case ('module', type() as found, *_) if issubclass(found, Inert):
                return found
            case ('storage', _Kind() as kind, str(key), _, int(count), *view) if view in ([], [None]):
                return _Storage(kind.dtype, key, count)
        raise pickle.UnpicklingError('it refers to something that is no tensor')


def read_module(path: str, packages: str) -> tuple[str, Source]:
    """Reads a pickled module.

    Args:
      path: of the file, in either format of `torch.save`.
      packages: regex of the Python modules whose classes the file may have; they are not imported.

    Returns:
      (name of the module's class, its parameters and buffers by the names of a state dict).

    Raises:
      UserError: the file asks for anything else, holds no module, or is damaged.
    """
    try:
        with open(path, 'rb') as file:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            file.seek(0)
            found, places = read(file, packages)
        tensors = dict(_walk(found, '', ()))
        for tensor in tensors.values():
            storage = tensor.storage
            if places[storage.key][1] != storage.values * storage.dtype.itemsize:
                raise pickle.UnpicklingError(f'it has no {storage.values} values under {storage.key!r}: it is damaged')
    except pickle.UnpicklingError as error:
        raise UserError(
            f'{path} was not read: {error}. Only tensors and the classes of the model itself are let through, since '
            'unpickling anything else can run code'
        ) from error
    except OSError:
        raise
    except Exception as error:  # an unpickler trips over damage in many ways
        raise UserError(f'{path} cannot be read as a PyTorch file ({error!r}): it is damaged or of another kind') from (
            error
        )
    source = Source(files=[path])
    for name, tensor in tensors.items():
        source.shapes[name] = tensor.shape
        source.readers[name] = functools.partial(_values, path, places[tensor.storage.key][0], tensor)
    return type(found).__name__, source


def _values(path: str, position: int, tensor: _Tensor) -> np.ndarray:
    """A tensor's values as float32; its storage begins at that byte."""
    dtype = tensor.storage.dtype
    values = np.fromfile(path, dtype, math.prod(tensor.shape), offset=position + tensor.offset * dtype.itemsize)
    return values.reshape(tensor.shape).astype(np.float32)


Places = Mapping[str, tuple[int, int]]  # key of a storage -> its first byte in the file, and its length


def _read_zip(file: Any, packages: str) -> tuple[Any, Places]:
    """The format since PyTorch 1.6: a zip archive with the pickle in 'data.pkl' and each storage in 'data/<key>'."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(r'[^/]+/data\.pkl', name)]
        if len(names) != 1:
            raise pickle.UnpicklingError('it is a zip archive, but none of PyTorch')
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise pickle.UnpicklingError('it is compressed, which files of PyTorch never are')
        folder = names[0].removesuffix('data.pkl')
        if f'{folder}byteorder' in archive.namelist() and archive.read(f'{folder}byteorder') != b'little':
            raise pickle.UnpicklingError('its values are big-endian')
        found = _Unpickler(io.BytesIO(archive.read(names[0])), packages).load()
        places = {}
        for info in archive.infolist():
            if info.filename.startswith(f'{folder}data/'):
                file.seek(info.header_offset)
                header = file.read(30)  # of the entry: fixed fields, the last two the lengths of what lies between
                start = info.header_offset + len(header) + sum(struct.unpack('<HH', header[26:]))
                places[info.filename.removeprefix(f'{folder}data/')] = (start, info.file_size)
    return found, places


def _read_legacy(file: Any, packages: str) -> tuple[Any, Places]:
    """The older format: pickles of two numbers, the system, the module and the storages' keys, then the storages."""
    start = [_Unpickler(file, packages).load() for _ in range(2)]
    if start != [LEGACY_MAGIC, LEGACY_PROTOCOL]:
        raise pickle.UnpicklingError('it is no file of torch.save')
    if _Unpickler(file, packages).load().get('little_endian') is not True:
        raise pickle.UnpicklingError('its values are big-endian')
    found, keys = (_Unpickler(file, packages).load() for _ in range(2))
    widths = {tensor.storage.key: tensor.storage.dtype.itemsize for _, tensor in _walk(found, '', ())}
    places, size, position = {}, os.fstat(file.fileno()).st_size, file.tell()
    for key in keys:
        file.seek(position)
        (count,) = struct.unpack('<q', file.read(8))
        places[key] = (position + 8, count * widths[key])
        position = sum(places[key])
        if count < 0 or position > size:
            raise pickle.UnpicklingError('it ends too early')
    return found, places


def _walk(module: Any, prefix: str, above: tuple[Any, ...]) -> Iterator[tuple[str, _Tensor]]:
    """(name, tensor) of a stand-in of a torch.nn.Module and all modules in it."""
    if not isinstance(module, Inert) or any(module is other for other in above):
        raise pickle.UnpicklingError('it holds a module that is none, or that holds itself')
    state = vars(module)
    for kind in ('_parameters', '_buffers'):
        for name, tensor in _named(state, kind):
            if tensor is None:
                continue
            if not isinstance(tensor, _Tensor):
                raise pickle.UnpicklingError(f'{prefix}{name} is no tensor')
            yield prefix + name, tensor
    for name, child in _named(state, '_modules'):
        if child is not None:
            yield from _walk(child, f'{prefix}{name}.', (*above, module))


def _named(state: Mapping[str, Any], kind: str) -> list[tuple[str, Any]]:
    found = state.get(kind, {})
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise pickle.UnpicklingError(f'{kind} of a module in it is no dict of names')
    return list(found.items())
