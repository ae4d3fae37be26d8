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
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

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

    def rename(self, canonical: Callable[[str], str]) -> None:
        """Gives the tensors other names."""
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
    config = os.path.join(path, 'config.json')
    if os.path.isdir(path) and os.path.exists(config):
        with open(config, encoding='utf-8') as file:
            source.hub_config = json.load(file)
    for name in source.files:
        if name.endswith('.safetensors'):
            _add_safetensors(source, name)
        else:
            _add_pickled(source, name, key)
    if not source.shapes:
        raise UserError(f'{path} holds no tensors')
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in source.shapes):
            source.rename(functools.partial(re.compile(f'^{re.escape(prefix)}').sub, ''))
    return source


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
                source.shapes[name] = tuple(tensors.get_slice(name).get_shape())
                source.readers[name] = functools.partial(read, name)
    except safetensors.SafetensorError as error:
        raise UserError(f'{file} is no whole safetensors file ({error}); download it again') from error


def _add_pickled(source: Source, file: str, key: str) -> None:
    torch = _torch()
    state = _find_state(source, load_pickled(file), file, key)

    def take(name: str) -> np.ndarray:
        return _to_numpy(state.pop(name))

    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            source.notes.append(f'{name} is no tensor and was not read')
            continue
        source.shapes[name] = tuple(value.shape)
        source.readers[name] = functools.partial(take, name)


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


def load_pickled(file: str) -> Any:
    """What `torch.save` wrote, through PyTorch's unpickler for plain data; nothing in the file is executed.

    `argparse.Namespace` is let through beside tensors and plain types: the published files hold their options as one,
    and it runs nothing when it is built.

    Raises:
      UserError: the file needs more than that, or is damaged.
    """
    torch = _torch()
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # about pickle protocols; what is not understood still fails
            return torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r'(?:GLOBAL|global|function|class) (\S+\.\S+)', str(error))
        what = f'it asks for {asked[1].rstrip(",.")}' if asked else 'it is damaged or holds more than tensors'
        raise UserError(
            f'{file} was not read: {what}, and unpickling such things can run code. Where you trust the file, save its '
            'state dict alone with torch.save, or as safetensors'
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
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
            with open(file, encoding='utf-8') as index:
                parts = sorted(set(json.load(index)['weight_map'].values()))
            return [os.path.join(path, os.path.basename(part)) for part in parts]
    deepspeed = sorted(glob.glob(os.path.join(glob.escape(path), '*mp_rank_00_model_states.pt')))
    if deepspeed:
        return deepspeed[:1]
    raise UserError(
        f'{path} holds neither {", ".join(HUB_FILES[::2])}, DeepSpeed model states nor an mvdjax checkpoint'
    )


@contextlib.contextmanager
def _appearing(path: str) -> Iterator[str]:
    """A temporary name beside `path`, renamed to it once all is written, removed if anything fails."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix='.mvdjax-', dir=folder)
    try:
        target = os.path.join(temporary, os.path.basename(os.path.abspath(path)))
        yield target
        if os.path.isdir(path):
            shutil.rmtree(path)
        os.replace(target, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(path: str, overwrite: bool) -> None:
    """Raises UserError if a file or folder that is there would be replaced without being told to."""
    if os.path.exists(path) and not overwrite:
        raise UserError(f'{path} exists: choose another name, or say --overwrite')


def write(path: str, tensors: Mapping[str, np.ndarray], hub_config: Mapping[str, Any] | None) -> None:
    """Writes a state dict: a pickled file, a safetensors file, or with `hub_config` a Hugging Face folder.

    Raises:
      UserError: the name says none of these.
    """
    if path.endswith('.safetensors'):
        with _appearing(path) as file:
            _write_safetensors(file, tensors)
    elif path.endswith(TORCH_SUFFIXES):
        torch = _torch()
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        with _appearing(path) as file:
            # The original programs look under 'model'; Hugging Face's look for the tensors themselves.
            torch.save(state if hub_config else {'model': state}, file)
    elif hub_config is not None:
        with _appearing(path) as folder:
            os.makedirs(folder)
            _write_safetensors(os.path.join(folder, 'model.safetensors'), tensors)
            with open(os.path.join(folder, 'config.json'), 'w', encoding='utf-8') as file:
                json.dump(hub_config, file, indent=2)
                file.write('\n')
    else:
        raise UserError(f'{path}: give a file ending in .pth or .safetensors (a folder is for the hf- families)')


def _write_safetensors(file: str, tensors: Mapping[str, np.ndarray]) -> None:
    _torch()
    import safetensors.numpy

    safetensors.numpy.save_file(dict(tensors), file, metadata={'format': 'pt'})
