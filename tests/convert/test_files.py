"""Reading PyTorch files: every wrapping that is met in the wild, and nothing in a file is ever run."""

import argparse
import collections
import json
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from mvdjax.convert import files
from mvdjax.errors import UserError

STATE = {'a.weight': torch.arange(6.0).reshape(2, 3), 'b': torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


def read(path, key=''):
    source = files.open_source(str(path), key)
    shapes = dict(source.shapes)
    return {name: source.pop(name) for name in shapes}, shapes, source


@pytest.mark.parametrize(
    'content',
    [
        STATE,
        {'model': STATE},
        {'module': STATE, 'optimizer': {'state': torch.ones(3)}, 'epoch': 7},
        {'state_dict': {f'module.{name}': value for name, value in STATE.items()}},
        {'model': {f'_orig_mod.module.{name}': value for name, value in STATE.items()}},
        {'model': collections.OrderedDict(STATE), 'args': argparse.Namespace(lr=1e-3, model='vit')},
    ],
    ids=['bare', 'model', 'deepspeed', 'state_dict_module', 'compiled', 'with_options'],
)
@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_wrappings(tmp_path, content, legacy):
    torch.save(content, tmp_path / 'file.pth', _use_new_zipfile_serialization=not legacy)
    arrays, shapes, _ = read(tmp_path / 'file.pth')
    assert shapes == {'a.weight': (2, 3), 'b': (2,)}
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, STATE[name].float().numpy())


def test_what_is_not_read_is_said(tmp_path):
    torch.save({'model': {**STATE, 'count': 3}, 'optimizer': {}, 'model_ema': STATE}, tmp_path / 'file.pth')
    _, _, source = read(tmp_path / 'file.pth')
    assert source.notes == [
        "of file.pth the key 'model' was read, not model_ema, optimizer",
        'count is no tensor and was not read',
    ]
    assert read(tmp_path / 'file.pth', key='model_ema')[1].keys() == STATE.keys()
    with pytest.raises(UserError, match=r"no state dict under the key 'ema'; it has model, optimizer, model_ema"):
        files.open_source(str(tmp_path / 'file.pth'), 'ema')


def test_folders(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text('{"hidden_size": 3}')
    arrays, _, source = read(tmp_path)
    np.testing.assert_array_equal(arrays['a.weight'], STATE['a.weight'])
    assert source.hub_config == {'hidden_size': 3}

    shards = tmp_path / 'shards'
    shards.mkdir()
    weights = {}
    for i, (name, value) in enumerate(STATE.items()):
        # One shard is mapped, the other, in the format of before 2020, is read whole.
        torch.save({name: value}, shards / f'pytorch_model-{i}.bin', _use_new_zipfile_serialization=i == 0)
        weights[name] = f'pytorch_model-{i}.bin'
    (shards / 'pytorch_model.bin.index.json').write_text(json.dumps({'weight_map': weights}))
    arrays, shapes, _ = read(shards)
    assert shapes == {'a.weight': (2, 3), 'b': (2,)}
    for name, value in STATE.items():
        np.testing.assert_array_equal(arrays[name], value.float())

    deepspeed = tmp_path / 'checkpoint-399'
    deepspeed.mkdir()
    torch.save({'module': STATE}, deepspeed / 'mp_rank_00_model_states.pt')
    assert read(deepspeed)[1] == {'a.weight': (2, 3), 'b': (2,)}

    empty = tmp_path / 'empty'
    empty.mkdir()
    with pytest.raises(UserError, match=r'empty holds neither model\.safetensors, pytorch_model\.bin'):
        files.open_source(str(empty))


class Malicious:
    """Unpickled by Python itself, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_a_malicious_file_does_nothing(tmp_path, legacy):
    mark = tmp_path / 'mark'
    torch.save(
        {'model': STATE, 'args': Malicious(str(mark))}, tmp_path / 'bad.pth', _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(UserError, match=r'bad\.pth was not read: it asks for posix\.mkdir, and unpickling such things'):
        files.open_source(str(tmp_path / 'bad.pth'))
    assert not mark.exists()
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(Malicious(str(mark))))
    with pytest.raises(UserError, match=r'plain\.pth'):
        files.open_source(str(tmp_path / 'plain.pth'))
    assert not mark.exists()
    torch.load(tmp_path / 'bad.pth', weights_only=False)  # the file does hold the attack
    assert mark.exists()


def test_options_of_the_published_programs_run_nothing(tmp_path):
    options = argparse.Namespace(output='x')
    torch.save({'model': STATE, 'args': options}, tmp_path / 'file.pth')
    assert files.load_pickled(str(tmp_path / 'file.pth'))['args'] == options


@pytest.mark.parametrize('kind', ['pth', 'safetensors'])
def test_damaged_files(tmp_path, kind):
    whole = tmp_path / f'whole.{kind}'
    if kind == 'pth':
        torch.save({'model': {'a': torch.zeros(1000)}}, whole)
    else:
        safetensors.torch.save_file({'a': torch.zeros(1000)}, whole)
    for name, content in (
        ('cut', whole.read_bytes()[:1500]),
        ('empty', b''),
        ('text', b'<!DOCTYPE html> not found'),
        ('pops', b'epoch 1'),
    ):
        file = tmp_path / f'{name}.{kind}'
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf'{name}\.{kind}'):
            files.open_source(str(file))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([1, 2], 'holds a list, not a state dict'),
        ({'weights': STATE, 'step': 1}, 'has the keys weights, step: say with --key'),
        ({'model': {}}, 'holds no tensors'),
    ],
)
def test_files_without_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / 'file.pth')
    with pytest.raises(UserError, match=message):
        files.open_source(str(tmp_path / 'file.pth'))


def test_wrong_paths(tmp_path):
    with pytest.raises(UserError, match='nothing does not exist'):
        files.open_source(str(tmp_path / 'nothing'))
    (tmp_path / 'a.txt').write_text('')
    with pytest.raises(UserError, match=r'a\.txt: the known endings are \.safetensors, \.pth'):
        files.open_source(str(tmp_path / 'a.txt'))


@pytest.mark.parametrize('error', [RuntimeError('PytorchStreamWriter failed writing file'), OSError(28, 'No space')])
def test_writing_is_all_or_nothing(tmp_path, monkeypatch, error):
    arrays = {'a': np.arange(4, dtype=np.float32)}
    target = tmp_path / 'out.pth'
    target.write_text('old')

    def full(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, 'save', full)
        with pytest.raises(UserError, match=r'writing .*out\.pth failed \(.*free space'):
            files.write(str(target), arrays)
    assert [p.name for p in tmp_path.iterdir()] == ['out.pth']
    assert target.read_text() == 'old'
    files.write(str(target), arrays)
    np.testing.assert_array_equal(torch.load(target)['model']['a'], arrays['a'])
    with pytest.raises(UserError, match='a folder is for the hf- families'):
        files.write(str(tmp_path / 'folder'), arrays)


def test_what_may_be_replaced(tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'target'
    for folder in (source, target):
        (folder / 'checkpoints' / '0').mkdir(parents=True)
    with pytest.raises(UserError, match='target exists: choose another name, or say --overwrite'):
        files.check_target(str(source), str(target), overwrite=False)
    files.check_target(str(source), str(target), overwrite=True)
    for other in (source, tmp_path, source / 'checkpoints'):
        with pytest.raises(UserError, match='lie within each other'):
            files.check_target(str(source), str(other), overwrite=True)
    for extra in ('checkpoints/500', 'notes'):
        (target / extra).mkdir()
        with pytest.raises(UserError, match='holds more than convert writes, and is left alone'):
            files.check_target(str(source), str(target), overwrite=True)
        (target / extra).rmdir()


@pytest.mark.parametrize(('name', 'text'), [('config.json', '{'), ('model.safetensors.index.json', '{}')])
def test_damaged_json(tmp_path, name, text):
    if name == 'config.json':
        safetensors.torch.save_file(STATE, tmp_path / 'model.safetensors')
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf'{name}.* damaged'):
        files.open_source(str(tmp_path))


def test_one_name_twice(tmp_path):
    torch.save({'x.query.bias': torch.zeros(2), 'x.q_bias': torch.zeros(2)}, tmp_path / 'file.pth')
    source = files.open_source(str(tmp_path / 'file.pth'))
    with pytest.raises(UserError, match=r'x\.query\.bias and x\.q_bias are two spellings'):
        source.rename(lambda name: name.replace('query.bias', 'q_bias'))
    torch.save({3: torch.zeros(2)}, tmp_path / 'file.pth')
    with pytest.raises(UserError, match='has a tensor under 3, which is no name'):
        files.open_source(str(tmp_path / 'file.pth'))
