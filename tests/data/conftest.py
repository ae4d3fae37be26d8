"""Fixtures of several modules."""

import pytest
from packs import COPY, in_this_process, listed, write_videos

from mvdjax.data import pack


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(pack, 'run_jobs', in_this_process)


@pytest.fixture(scope='session')
def videos(tmp_path_factory):
    """The folder of `packs.write_videos`. Read only."""
    folder = tmp_path_factory.mktemp('videos')
    write_videos(folder)
    return folder


@pytest.fixture(scope='session')
def whole(videos, tmp_path_factory):
    """A finished pack. Read only."""
    folder = tmp_path_factory.mktemp('packs') / 'my_list' / '1.0.0'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, 'run_jobs', in_this_process)
        pack.write_pack(listed(videos), '', str(folder), COPY, progress=False)
    return folder
