"""A read that crawls is given up; one that goes on is not."""

import numpy as np
import pytest
from video_files import X264, encode

from mvdjax.data import watchdog
from mvdjax.data.decode import DecodeError, read_frames


def test_a_file_that_costs_too_much_is_given_up(tmp_path, monkeypatch):
    path = encode(tmp_path / 'plain.mp4', 'libx264', frames=30, **X264)
    assert len(read_frames(path, np.arange)) == 30
    monkeypatch.setattr(watchdog, 'MAX_SECONDS', 0.0)
    with pytest.raises(DecodeError, match='takes more than 0 s of processor time to read'):
        read_frames(path, np.arange)


def test_a_heartbeat_passes_signs_of_life_on_and_sets_no_limit(monkeypatch):
    monkeypatch.setattr(watchdog, 'MAX_SECONDS', 0.0)
    beats = []
    heartbeat = watchdog.Heartbeat(lambda: beats.append(1))
    heartbeat.check()
    heartbeat.check()
    assert len(beats) == 2
