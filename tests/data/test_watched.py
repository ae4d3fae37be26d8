"""Jobs in processes that may die of them: whatever one does, every job has an answer, and the others go on."""

import os
import signal
import sys
import time

import pytest

from mvdjax.data.watched import Failure, run_jobs
from mvdjax.errors import UserError


def work(job, alive):
    alive(60.0)
    if job == 'hang':
        alive(0.5)
        while True:
            pass
    elif job == 'slow':  # longer than the limit in all, but never silent
        for _ in range(4):
            alive(3.0)
            time.sleep(0.8)
    elif job == 'crash':
        os.kill(os.getpid(), signal.SIGSEGV)
    elif job == 'too large':
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does, out of memory
    elif job == 'leave':
        os._exit(3)
    elif job == 'raise':
        raise ValueError('odd')
    elif job.startswith('once:'):  # fails the first time only
        if not os.path.exists(job[5:]):
            open(job[5:], 'w').close()
            os._exit(1)
    elif job == 'modules':
        import mvdjax.data.examine  # noqa: F401 -- what the workers of `mvdjax data check` import

        return 'jax' in sys.modules
    return job.upper()


def test_every_job_has_an_answer_whatever_becomes_of_its_worker(tmp_path):
    once = f'once:{tmp_path}/mark'
    jobs = ['a', 'hang', 'crash', 'b', 'leave', 'raise', once, 'slow', 'modules', 'c']
    answers = list(run_jobs(work, jobs, 2))
    assert sorted(number for number, _ in answers) == list(range(len(jobs)))  # each once
    found = {jobs[number]: answer for number, answer in answers}
    reasons = {job: answer.reason for job, answer in found.items() if isinstance(answer, Failure)}
    assert set(reasons) == {'hang', 'crash', 'leave', 'raise'}
    assert 'hangs' in reasons['hang']
    assert 'SIGSEGV' in reasons['crash']
    assert 'exit code 3' in reasons['leave']
    assert reasons['raise'] == 'cannot be checked: ValueError: odd'
    assert found[once] == once.upper()
    assert [found[job] for job in ('a', 'b', 'c', 'slow')] == ['A', 'B', 'C', 'SLOW']
    assert found['modules'] is False


def test_a_job_is_not_blamed_for_a_want_of_memory():
    answers = run_jobs(work, ['too large', 'a'], 1, lambda job: f'/data/{job}')
    assert next(answers) == (1, 'A')
    with pytest.raises(UserError, match=r'^/data/too large .*\(SIGKILL\) twice: .* lower --workers'):
        next(answers)


def test_no_jobs():
    assert list(run_jobs(work, [], 2)) == []
