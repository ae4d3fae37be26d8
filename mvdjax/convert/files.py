"""PyTorch files: read without running anything that they hold, tensor by tensor; written in one move.

Reading and writing is PyTorch's and safetensors' own business; both come with the extra `torch`.
"""

import argparse
import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mvdjax.checkpoints import FOLDER
from mvdjax.convert.layouts import Shape
from mvdjax.errors import UserError

CONTAINERS = ('model', 'module', 'state_dict', 'model_state_dict')  # keys that state dicts lie under, in this order
PREFIXES = ('module.', '_orig_mod.', 'model.')  # DistributedDataParallel, torch.compile, Lightning
TORCH_SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt')
HUB_FILES = ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin', 'pytorch_model.bin.index.json')


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError("PyTorch files need PyTorch: pip install 'mvdjax[torch]' (its CPU build will do)") from error
    return torch


@dataclasses.dataclass
class Source:
    """The tensors of a file or folder: shapes at once, values one at a time, each only once.

    Attributes:
      readers: name -> a function that makes the float32 array.
      shapes: name -> shape.
      files: where they are.
      hub_config: Hugging Face's config.json, or {}.
      notes: what was left unread, for the user.
    """

    readers: dict[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)
    shapes: dict[str, Shape] = dataclasses.field(default_factory=dict)
    files: list[str] = dataclasses.field(default_factory=list)
    hub_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> 'Source':
        """Arrays in memory under their PyTorch names."""
        readers: dict[str, Callable[[], np.ndarray]] = {}
        for name, array in arrays.items():
            readers[name] = functools.partial(np.asarray, array, np.float32)
        return cls(readers, {name: tuple(array.shape) for name, array in arrays.items()})

    def __contains__(self, name: object) -> bool:
        """Whether a tensor is still there."""
        return name in self.readers

    def pop(self, name: str) -> np.ndarray:
        """A tensor as float32 (exact for 16-bit floats), forgotten here."""
        return self.readers.pop(name)()

    def forget(self, names: Iterable[str]) -> None:
        """Leaves tensors out, as if the file did not hold them."""
        for name in names:
            self.shapes.pop(name, None)
            self.readers.pop(name, None)

    def rename(self, canonical: Callable[[str], str]) -> None:
        """Gives the tensors other names.

        Raises:
          UserError: two tensors would have the same.
        """
        names: dict[str, str] = {}
        for name in self.shapes:
            other = names.setdefault(canonical(name), name)
            if other != name:
                raise UserError(f'{other} and {name} are two spellings of one tensor, and the file has both')
        self.shapes = {canonical(name): shape for name, shape in self.shapes.items()}
        self.readers = {canonical(name): reader for name, reader in self.readers.items()}

    def sha256(self) -> str:
        """Of the files, in the order of their names."""
        digest = hashlib.sha256()
        for name in self.files:
            with open(name, 'rb') as file:
                while block := file.read(2**22):
                    digest.update(block)
        return digest.hexdigest()


def open_source(path: str, key: str = '') -> Source:
    """Opens a .pth, .pt, .bin, .ckpt or .safetensors file, or a folder that Hugging Face or DeepSpeed wrote.

    Args:
      path: file or folder.
      key: where a pickled file holds several state dicts, the key of the one to take.

    Raises:
      UserError: no such file, a damaged one, or one that could run code.
    """
    source = Source(files=_files(path))
    hub = os.path.isdir(path) or os.path.basename(path) in HUB_FILES
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    for name in ('config.json', 'preprocessor_config.json') if hub else ():
        if os.path.exists(os.path.join(folder, name)):
            source.hub_config |= read_json(os.path.join(folder, name))
    for name in source.files:
        if not name.endswith('.safetensors'):
            _add_pickled(source, name, key)
        elif key:
            raise UserError(f'--key is for pickled files; {name} holds one state dict')
        else:
            _add_safetensors(source, name)
    if not source.shapes:
        raise UserError(f'{path} holds no tensors' + (f' under {key!r}' if key else '; --key names another state dict'))
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in source.shapes)), ''):
        source.rename(functools.partial(re.compile(f'^{re.escape(prefix)}').sub, ''))
    return source


def read_json(path: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: the file holds something else.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except ValueError as error:
        raise UserError(f'{path} is no JSON file ({error}): it is damaged') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a JSON object')
    return content


def _add_safetensors(source: Source, file: str) -> None:
    _torch()
    import safetensors

    def read(name: str) -> np.ndarray:
        # Opened for each tensor: an open file keeps every page that was read from it in memory.
        with safetensors.safe_open(file, framework='pt') as tensors:
            return _to_numpy(tensors.get_tensor(name)).copy()

    try:
        with safetensors.safe_open(file, framework='pt') as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                _check_new(source, name, file)
                source.shapes[name] = tuple(tensors.get_slice(name).get_shape())
                source.readers[name] = functools.partial(read, name)
    except safetensors.SafetensorError as error:
        raise UserError(f'{file} is no whole safetensors file ({error}); download it again') from error


def _add_pickled(source: Source, file: str, key: str) -> None:
    torch = _torch()
    # One of several shards is mapped, not read, and again for each tensor: the others need the memory. PyTorch's
    # format of before 2020 cannot be mapped.
    mapped = len(source.files) > 1 and zipfile.is_zipfile(file)
    state = _find_state(source, load_pickled(file, mapped), file, key)

    def take(name: str) -> np.ndarray:
        return _to_numpy(state.pop(name))

    def take_mapped(name: str) -> np.ndarray:
        return _to_numpy(_find_state(Source(), load_pickled(file, True), file, key)[name]).copy()

    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            source.notes.append(f'{name} is no tensor and was not read')
            continue
        _check_new(source, name, file)
        source.shapes[name] = tuple(value.shape)
        source.readers[name] = functools.partial(take_mapped if mapped else take, name)
    if mapped:
        state.clear()


def _check_new(source: Source, name: Any, file: str) -> None:
    if not isinstance(name, str):
        raise UserError(f'{file} has a tensor under {name!r}, which is no name')
    if name in source.shapes:
        raise UserError(f'{name} is in {file} and in another file of the folder')


def _find_state(source: Source, content: Any, file: str, key: str) -> dict[str, Any]:
    """The state dict in what a pickled file holds."""
    torch = _torch()
    if not isinstance(content, Mapping):
        raise UserError(f'{file} holds a {type(content).__name__}, not a state dict')
    if key and not isinstance(content.get(key), Mapping):
        held = ', '.join(str(k) for k, v in content.items() if isinstance(v, Mapping)) or 'none'
        raise UserError(f'{file} has no state dict under the key {key!r}; it has {held}')
    found = [key] if key else [k for k in CONTAINERS if isinstance(content.get(k), Mapping)]
    if found:
        others = sorted(str(k) for k in content if k != found[0])
        if others:
            source.notes.append(f'of {os.path.basename(file)} the key {found[0]!r} was read, not {", ".join(others)}')
        return dict(content[found[0]])
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        return dict(content)
    keys = ', '.join(str(k) for k in content)
    raise UserError(f'{file} has the keys {keys}: say with --key which one is the state dict')


def load_pickled(file: str, mapped: bool = False) -> Any:
    """What `torch.save` wrote, through PyTorch's unpickler for plain data; nothing in the file is executed.

    `argparse.Namespace` is let through beside tensors and plain types: the published files hold their options as one,
    and it runs nothing when it is built. With `mapped`, the values stay in the file until they are looked at.

    Raises:
      UserError: the file needs more than that, or is damaged.
    """
    torch = _torch()
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # about pickle protocols; what is not understood still fails
            return torch.load(file, map_location='cpu', weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        asked = re.search(r'(?:GLOBAL|global|function|class) (\S+\.\S+)', str(error))
        what = f'it asks for {asked[1].rstrip(",.")}' if asked else 'it is damaged or holds more than tensors'
        raise UserError(
            f'{file} was not read: {what}, and unpickling such things can run code. Where you trust the file, save its '
            'state dict alone with torch.save, or as safetensors'
        ) from error
    except OSError:
        raise
    except Exception as error:  # the unpickler trips over damage in many ways
        first = str(error).strip().split('\n', 1)[0][:200]
        raise UserError(f'{file} cannot be read as a PyTorch file ({first}): it is damaged or of another kind') from (
            error
        )


def _to_numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


def _files(path: str) -> list[str]:
    """The files with tensors that a path means."""
    if os.path.isfile(path):
        if not path.endswith(('.safetensors', *TORCH_SUFFIXES)):
            raise UserError(f'{path}: the known endings are .safetensors, {", ".join(TORCH_SUFFIXES)}')
        return [path]
    if not os.path.isdir(path):
        raise UserError(f'{path} does not exist')
    for name in HUB_FILES:
        file = os.path.join(path, name)
        if os.path.exists(file):
            if not name.endswith('.json'):
                return [file]
            places = read_json(file).get('weight_map')
            if not isinstance(places, dict) or not places:
                raise UserError(f'{file} has no weight_map: it is damaged')
            parts = sorted({str(part) for part in places.values()})
            return [os.path.join(path, os.path.basename(part)) for part in parts]
    deepspeed = sorted(glob.glob(os.path.join(glob.escape(path), '*mp_rank_00_model_states.pt')))
    if deepspeed:
        return deepspeed[:1]
    raise UserError(
        f'{path} holds neither {", ".join(HUB_FILES[::2])}, DeepSpeed model states nor an mvdjax checkpoint'
    )


@contextlib.contextmanager
def appearing(path: str) -> Iterator[str]:
    """A temporary name beside `path`, renamed to it once all is written, removed if anything fails."""
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = tempfile.mkdtemp(prefix='.mvdjax-', dir=os.path.dirname(path))
    try:
        target = os.path.join(temporary, os.path.basename(path))
        yield target
        if os.path.isdir(path):
            os.replace(path, os.path.join(temporary, 'old'))
        os.replace(target, path)
    except UserError:
        raise
    except Exception as error:  # each writer reports a full disk with an exception of its own
        first = str(error).strip().split('\n', 1)[0][:200]
        raise UserError(
            f'writing {path} failed ({first}): free space or fix the permissions; nothing was changed'
        ) from (error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


HUB_FOLDER = {'config.json', 'preprocessor_config.json', 'model.safetensors'}  # what `write` makes


def check_target(source: str, target: str, overwrite: bool) -> None:
    """Raises UserError where writing `target` would destroy something that was not meant.

    Args:
      source: what is read.
      target: what is to be written.
      overwrite: whether an earlier result may be replaced.
    """
    ends = [os.path.realpath(path) for path in (source, target)]
    if os.path.commonpath(ends) in ends:
        raise UserError(f'{target} and {source} lie within each other: choose another place')
    if not os.path.exists(target):
        return
    if not overwrite:
        raise UserError(f'{target} exists: choose another name, or say --overwrite')
    if os.path.isdir(target):
        found = set(os.listdir(target))
        steps = os.path.join(target, FOLDER)
        ours = found <= {FOLDER} and (not os.path.isdir(steps) or set(os.listdir(steps)) <= {'0'})
        if not ours and not found <= HUB_FOLDER:
            raise UserError(f'{target} holds more than convert writes, and is left alone: choose another name')


def check_name(path: str, hub: bool) -> None:
    """Raises UserError unless a name says what to write; a folder is for Hugging Face's families."""
    if not hub and not path.endswith(('.safetensors', *TORCH_SUFFIXES)):
        raise UserError(f'{path}: give a file ending in .pth or .safetensors (a folder is for the hf- families)')


def write(
    path: str,
    tensors: Mapping[str, np.ndarray],
    hub_config: Mapping[str, Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    container: str = 'model',
) -> None:
    """Writes a state dict: a pickled file, a safetensors file, or with the two JSONs a Hugging Face folder.

    In a pickled file the original programs look for it under a key, `container`; Hugging Face's look for the tensors.

    Raises:
      UserError: it cannot be written; what was there is untouched.
    """
    check_name(path, hub_config is not None)
    if path.endswith('.safetensors'):
        with appearing(path) as file:
            _write_safetensors(file, tensors)
    elif path.endswith(TORCH_SUFFIXES):
        torch = _torch()
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        with appearing(path) as file:
            torch.save(state if hub_config else {container: state}, file)
    else:
        with appearing(path) as folder:
            os.makedirs(folder)
            _write_safetensors(os.path.join(folder, 'model.safetensors'), tensors)
            for name, content in (('config.json', hub_config), ('preprocessor_config.json', preprocessor)):
                with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
                    json.dump(content, file, indent=2)
                    file.write('\n')


def _write_safetensors(file: str, tensors: Mapping[str, np.ndarray]) -> None:
    _torch()
    import safetensors.numpy

    safetensors.numpy.save_file(dict(tensors), file, metadata={'format': 'pt'})
