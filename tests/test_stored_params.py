"""Parameters read from a checkpoint one at a time."""

import functools

import numpy as np
import pytest

from mvdjax import checkpoints
from mvdjax.convert import writing
from mvdjax.errors import UserError

LEAVES = {'a/b/kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'a/c': np.float32([1, 2]), 'd': np.float32([3])}


@pytest.fixture
def workdir(tmp_path):
    leaves = {name: writing.Leaf(leaf.shape, functools.partial(np.asarray, leaf)) for name, leaf in LEAVES.items()}
    writing.save(str(tmp_path / 'run'), leaves, {'step': 0})
    return tmp_path / 'run'


def test_each_is_read_alone_and_all_are_what_was_written(workdir):
    stored = checkpoints.StoredParams(str(workdir))
    assert stored.shapes == {name: leaf.shape for name, leaf in LEAVES.items()}
    assert len(stored) == 3
    for name in list(stored):
        assert name in stored
        np.testing.assert_array_equal(stored.pop(name), LEAVES[name])
        assert name not in stored
    whole = checkpoints.read_params(str(workdir))
    assert whole.keys() == LEAVES.keys()
    for name, leaf in LEAVES.items():
        np.testing.assert_array_equal(whole[name], leaf)


def test_what_is_not_there(workdir):
    stored = checkpoints.StoredParams(str(workdir))
    with pytest.raises(KeyError):
        stored['a/x']
    with pytest.raises(TypeError, match='not written this way'):
        stored['a/c'] = LEAVES['d']
    with pytest.raises(UserError, match='has no ema'):
        checkpoints.StoredParams(str(workdir), use_ema=True)


def test_a_damaged_checkpoint_is_named(workdir):
    stored = checkpoints.StoredParams(str(workdir))
    chunks = [file for file in (workdir / 'checkpoints/0/params').rglob('*') if file.name.replace('.', '').isdigit()]
    assert len(chunks) == len(LEAVES)
    for file in chunks:
        file.write_bytes(b'')
    with pytest.raises(UserError, match=r'params cannot be read .*damaged or incomplete'):
        stored['a/c']
