"""DALL-E's encoder.pkl: read as the published file is, a whole pickled module, and nothing in it is ever run."""

import io
import os
import pickle
import sys
import types
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from golden_weights import weight
from torch import nn

from mvdjax import checkpoints, main
from mvdjax.convert import dalle, inert
from mvdjax.errors import UserError
from mvdjax.tasks.tokenizer import make_tokenizer

SIZE = {'width': 8, 'blocks': 1, 'vocabulary': 16}


class Conv2d(nn.Module):
    """The package's own convolution, with parameters `w` and `b`; `device` is pickled as an attribute."""

    def __init__(self, inputs, outputs, side):
        super().__init__()
        self.device = torch.device('cpu')
        self.w = nn.Parameter(torch.zeros(outputs, inputs, side, side), requires_grad=False)
        self.b = nn.Parameter(torch.zeros(outputs), requires_grad=False)


class EncoderBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.post_gain = 1 / 16
        self.id_path = Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        quarter = outputs // 4
        sides = [(inputs, quarter, 3), (quarter, quarter, 3), (quarter, quarter, 3), (quarter, outputs, 1)]
        layers = [(f'{kind}_{i}', layer) for i, s in enumerate(sides, 1) for kind, layer in pair(s)]
        self.res_path = nn.Sequential(OrderedDict(layers))


def pair(sizes):
    return [('relu', nn.ReLU()), ('conv', Conv2d(*sizes))]


class Encoder(nn.Module):
    def __init__(self, width, blocks, vocabulary):
        super().__init__()
        assert blocks == 1
        layers = [('input', Conv2d(3, width, 7))]
        before = width
        for i, factor in enumerate((1, 2, 4, 8), 1):
            group = OrderedDict([('block_1', EncoderBlock(before, factor * width)), ('pool', nn.MaxPool2d(2))])
            layers.append((f'group_{i}', nn.Sequential(group)))
            before = factor * width
        output = nn.Sequential(OrderedDict([('relu', nn.ReLU()), ('conv', Conv2d(before, vocabulary, 1))]))
        self.blocks = nn.Sequential(OrderedDict([*layers, ('output', output)]))


@pytest.fixture(scope='module')
def package():
    """The classes under the names of the package `dall_e`, for as long as a file is written."""
    places = {Conv2d: 'dall_e.utils', EncoderBlock: 'dall_e.encoder', Encoder: 'dall_e.encoder'}
    before = {found: found.__module__ for found in places}
    modules = {name: types.ModuleType(name) for name in ('dall_e', *places.values())}
    for found, name in places.items():
        found.__module__ = name
        setattr(modules[name], found.__name__, found)

    def save(content, path, legacy=False):
        sys.modules.update(modules)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # about the source code of classes
                torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        finally:
            for name in modules:
                del sys.modules[name]

    yield save
    for found, name in before.items():
        found.__module__ = name


@pytest.fixture(scope='module')
def weights():
    return {name: torch.from_numpy(weight(name, value.shape)) for name, value in Encoder(**SIZE).state_dict().items()}


@pytest.fixture(scope='module')
def module(weights):
    found = Encoder(**SIZE)
    found.load_state_dict(weights)
    return found


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_a_pickled_module_is_read_without_its_classes(tmp_path, package, module, weights, legacy):
    package(module, tmp_path / 'encoder.pkl', legacy)
    assert 'dall_e' not in sys.modules
    with pytest.raises((ModuleNotFoundError, pickle.UnpicklingError)):  # what PyTorch itself makes of it
        torch.load(tmp_path / 'encoder.pkl', weights_only=True)
    name, source = inert.read_module(str(tmp_path / 'encoder.pkl'), dalle.PACKAGES)
    assert name == 'Encoder'
    assert source.shapes == {key: tuple(value.shape) for key, value in weights.items()}
    for key, value in weights.items():
        found = source.pop(key)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, value.numpy())


def test_the_command_goes_both_ways(tmp_path, package, module, weights, capsys):
    file, workdir, back = tmp_path / 'encoder.pkl', tmp_path / 'dalle', tmp_path / 'back.pth'
    package(module, file)
    assert main.main(['convert', str(file), str(workdir)]) == 0
    out = capsys.readouterr().out
    assert 'a pickled module of the class Encoder; its code was neither imported nor run' in out
    assert '8 wide, 1 blocks in each of 4 groups, 16 codes' in out
    meta = checkpoints.read_meta(str(workdir))
    assert meta['licence'] == dalle.LICENCE
    tokenizer = make_tokenizer({'kind': 'dalle', 'checkpoint': str(workdir), 'model': SIZE})
    assert tokenizer.sources() == [str(workdir)]
    params = tokenizer.params()
    np.testing.assert_array_equal(params['head']['bias'], weights['blocks.output.conv.b'])
    kernel = weights['blocks.group_2.block_1.id_path.w'].numpy()  # (out, in, 1, 1)
    np.testing.assert_array_equal(params['group2_block1']['shortcut']['kernel'], kernel.transpose(2, 3, 1, 0))
    assert main.main(['selfcheck', str(workdir)]) == 0
    assert 'features within' in capsys.readouterr().out
    assert main.main(['convert', str(workdir), str(back)]) == 0
    found = torch.load(back)['model']
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    # The state dict alone does as well, and a tokenizer of another size is refused.
    again = tmp_path / 'again'
    assert main.main(['convert', str(back), str(again), '--family=dalle', '--licence=mine']) == 0
    assert checkpoints.read_meta(str(again))['licence'] == 'mine'
    with pytest.raises(UserError, match='does not fit the tokenizer'):
        make_tokenizer({'kind': 'dalle', 'checkpoint': str(again), 'model': {**SIZE, 'vocabulary': 32}}).params()
    capsys.readouterr()
    for arguments, message in (
        ([str(file), str(tmp_path / 'x'), '--heads=2'], '--heads: not for the family dalle'),
        ([str(workdir), str(tmp_path / 'x.pth'), '--family=mae'], 'can be written as --family=dalle only'),
    ):
        assert main.main(['convert', *arguments]) == 1
        assert message in capsys.readouterr().err


class Attack:
    """Unpickled by Python itself, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('where', ['attribute', 'parameter', 'whole'])
def test_a_malicious_file_does_nothing(tmp_path, package, where, legacy):
    mark, file = tmp_path / 'mark', tmp_path / 'encoder.pkl'
    found = Encoder(**SIZE)
    if where == 'attribute':
        found.blocks.input.device = Attack(str(mark))
    elif where == 'parameter':
        found.blocks.input._parameters['w'] = Attack(str(mark))
    package(Attack(str(mark)) if where == 'whole' else found, file, legacy)
    with pytest.raises(UserError, match=r'encoder\.pkl was not read: it asks for posix\.mkdir'):
        inert.read_module(str(file), dalle.PACKAGES)
    assert not mark.exists()
    if where == 'whole':
        torch.load(file, weights_only=False)  # the file does hold the attack
        assert mark.exists()


def archive(path, pickled):
    """A file as `torch.save` writes it around this pickle."""
    with zipfile.ZipFile(path, 'w') as found:
        found.writestr('archive/data.pkl', pickled)
        found.writestr('archive/byteorder', 'little')
        found.writestr('archive/data/0', np.arange(4, dtype='<f4').tobytes())


MODULE = b'cdall_e.encoder\nEncoder\n'  # opcode GLOBAL: pushes the class
ATTACKS = {
    'eval': b"cbuiltins\neval\n(S'1'\ntR.",
    'system_by_stack': b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'true'\ntR.",
    'getattr_chain': b"cbuiltins\ngetattr\n(cdall_e.encoder\nEncoder\nS'mro'\ntR.",
    'dotted_name': b'\x80\x04\x8c\x06dall_e\x8c\x14__init__.__globals__\x93.',
    'instance': b"(S'true'\nios\nsystem\n.",
    'extension': b'\x82\x01.',
    'torch_function': b'ctorch.hub\nload\n(tR.',
    'functional': b'ctorch.nn.functional\nboolean_dispatch\n(tR.',
    'call_of_an_instance': MODULE + b')\x81(tR.',
    'set_attributes_of_the_reader': b"ctorch._utils\n_rebuild_tensor_v2\nN(dS'__call__'\nNs\x86b.",
}


@pytest.mark.parametrize('name', ATTACKS)
def test_pickles_that_reach_for_more_are_refused(tmp_path, name):
    archive(tmp_path / 'encoder.pkl', ATTACKS[name])
    reader = inert.KNOWN['torch._utils._rebuild_tensor_v2']
    before = vars(type(reader)).copy()
    with pytest.raises(UserError, match=r'encoder\.pkl'):
        inert.read_module(str(tmp_path / 'encoder.pkl'), dalle.PACKAGES)
    assert dict(vars(type(reader))) == dict(before)


def test_tensors_outside_of_their_storage_are_refused(tmp_path):
    class Pickler(pickle.Pickler):
        def persistent_id(self, found):
            return found.pid if isinstance(found, Stored) else None

    class Stored:
        def __init__(self, count):
            self.pid = ('storage', torch.FloatStorage, '0', 'cpu', count)

    class Rebuilt:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (*self.arguments, False, OrderedDict())

    def read(*arguments):
        buffer = io.BytesIO()
        state = {'_parameters': {'w': Rebuilt(*arguments)}, '_modules': {}}
        holder = nn.Identity()
        holder.__dict__ = state
        Pickler(buffer, 2).dump(holder)
        archive(tmp_path / 'encoder.pkl', buffer.getvalue())
        return inert.read_module(str(tmp_path / 'encoder.pkl'), dalle.PACKAGES)[1]

    np.testing.assert_array_equal(read(Stored(4), 1, (3,), (1,)).pop('w'), [1, 2, 3])
    for arguments in (
        (Stored(4), 2, (3,), (1,)),  # past the end
        (Stored(4), 0, (2, 2), (1, 2)),  # not one after the other
        (Stored(4), -1, (2,), (1,)),
        (Stored(4), 0, (2**40, 2), (0, 0)),  # endless
        (Stored(5), 0, (5,), (1,)),  # the file has four values
        (Stored(4), 0, (2.0,), (1,)),
        ('no storage', 0, (2,), (1,)),
    ):
        with pytest.raises(UserError, match=r'encoder\.pkl (was not read|cannot be read)'):
            read(*arguments)


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_damaged_files(tmp_path, package, module, legacy):
    file = tmp_path / 'encoder.pkl'
    package(module, file, legacy)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-100], b'', b'<!DOCTYPE html> not found'):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r'encoder\.pkl'):
            inert.read_module(str(file), dalle.PACKAGES)
    package(module.state_dict(), file, legacy)
    with pytest.raises(UserError, match='it holds an OrderedDict where a module belongs'):
        inert.read_module(str(file), dalle.PACKAGES)
    package(nn.Linear(2, 2), file, legacy)
    with pytest.raises(UserError, match='holds no DALL-E encoder'):
        dalle.import_encoder(str(file), str(tmp_path / 'out'))
