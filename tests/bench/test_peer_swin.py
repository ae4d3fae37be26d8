"""The stand-ins that the published Swin backbone is imported with, on a file that asks for the same names."""

import sys

import pytest

from mvdjax.bench import peer_swin
from mvdjax.errors import UserError

PUBLISHED = """
from timm.models.layers import DropPath, to_2tuple, trunc_normal_
from mmcv.runner import load_checkpoint, _load_checkpoint, load_state_dict
from mmaction.utils import get_root_logger
from ..builder import BACKBONES


@BACKBONES.register_module()
class SwinTransformerBEVT:
    pair, same, path = to_2tuple(4), to_2tuple((2, 3)), DropPath(0.0)
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout of one file; what its import puts into the interpreter is taken out again."""
    file = tmp_path / peer_swin.FILE
    file.parent.mkdir(parents=True)
    file.write_text(PUBLISHED)
    before = dict(sys.modules)
    yield str(tmp_path)
    for name in set(sys.modules) - set(before):
        if name.split('.')[0] in ('timm', 'mmcv', 'mmaction'):
            del sys.modules[name]


def test_the_published_file_imports_with_stand_ins(checkout):
    found = peer_swin.published_class(checkout)
    assert (found.pair, found.same) == ((4, 4), (2, 3))
    assert found.path(3) == 3


def test_a_folder_without_it_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'has no mmaction.*swin_transformer_bevt\.py: give the folder'):
        peer_swin.published_class(str(tmp_path))


def test_both_sides_get_the_same_inputs_and_the_peer_is_optional():
    first, second = peer_swin._inputs(1, 2), peer_swin._inputs(1, 2)
    assert first['clips'].shape == (1, 16, 224, 224, 3)
    assert first['images'].shape == (2, 1, 224, 224, 3)
    assert first['clips_labels'].shape == (1, 3136)
    assert all((first[name] == second[name]).all() for name in first)
    alone = peer_swin.candidates('', 'T', 1, 8)
    both = peer_swin.candidates('x', 'T', 1, 8)
    assert [candidate.name for candidate in alone] == ['ours']
    assert [candidate.name for candidate in both] == ['ours', 'published']
