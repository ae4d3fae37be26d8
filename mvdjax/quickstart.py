"""The quickstart: a whole pipeline on the demo data with tiny models, as the commands a user would type.

Run by launch/quickstart.sh. It writes the data, pretrains by a published method (`quickstart_jobs.METHODS`), fine-tunes
three initialisations on two label sets with one recipe, tests them, draws the pictures and prints the table.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import psutil

from mvdjax.errors import UserError
from mvdjax.quickstart_jobs import LABELS, METHODS, Job, Method, make_jobs

CHANCE = {'motion': 12.5, 'appearance': 12.5}  # eight classes each, evenly filled
# glibc gives XLA's buffers back to the kernel after every step and faults them in again: a quarter of the time of a
# training step on a CPU (docs/benchmarks.md). Other C libraries ignore these.
KEEP_MEMORY = {
    'MALLOC_ARENA_MAX': '1',
    'MALLOC_MMAP_THRESHOLD_': str(2**32),
    'MALLOC_TRIM_THRESHOLD_': str(2**32),
}


class Runner:
    """Runs jobs, two at a time, each on its own half of the cores; remembers in a file which are done."""

    def __init__(self, output: str) -> None:
        """Reads what an earlier call finished in this folder."""
        self._output = output
        self._done_file = os.path.join(output, 'done.json')
        self._done: dict[str, dict] = {}
        if os.path.exists(self._done_file):
            with open(self._done_file, encoding='utf-8') as file:
                self._done = json.load(file)
        cores = sorted(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, 'cpu_affinity') else []
        # Two single-core processes finish more steps than one process on two cores: tiny models do not parallelise.
        half = max(1, len(cores) // 2)
        self._slots = [cores[:half], cores[half:]] if len(cores) > 1 else [cores]
        self._running: list[Job] = []
        self._condition = threading.Condition()
        self._failed = ''
        self.peak_rss = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs all jobs.

        Raises:
          UserError: a command failed; the message names its log.
        """
        os.makedirs(os.path.join(self._output, 'logs'), exist_ok=True)
        finished = threading.Event()
        threading.Thread(target=self._watch_memory, args=(finished,), daemon=True).start()
        waiting = self._forget_changed(jobs)
        workers = [threading.Thread(target=self._work, args=(waiting, slot), daemon=True) for slot in self._slots]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        finished.set()
        if self._failed:
            raise UserError(self._failed)

    def _work(self, waiting: list[Job], cores: list[int]) -> None:
        try:
            self._take_jobs(waiting, cores)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other thread must not wait for ever
            with self._condition:
                self._failed = self._failed or f'the quickstart stopped: {type(error).__name__}: {error}'
                self._condition.notify_all()

    def _take_jobs(self, waiting: list[Job], cores: list[int]) -> None:
        while True:
            with self._condition:
                while waiting and not self._failed and not self._ready(waiting):
                    self._condition.wait()
                if self._failed or not waiting:
                    self._condition.notify_all()
                    return
                job = self._ready(waiting)[0]
                waiting.remove(job)
                self._running.append(job)
            error = self._run_job(job, [] if job.alone else cores)
            with self._condition:
                self._running.remove(job)
                self._failed = self._failed or error
                self._condition.notify_all()

    def _forget_changed(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs still to run: new ones, those whose commands or configs changed, and all that need one of them.

        The folders of jobs to be run anew are removed: a workdir would otherwise resume, or call itself finished.
        """
        todo: list[Job] = []
        for job in jobs:
            known = self._done.get(job.name, {}).get('key') == job.key() and job.has_output()
            if known and not {other.name for other in todo} & set(job.needs):
                print(f'[{job.name}] done before', flush=True)
                continue
            if self._done.pop(job.name, None) is not None:
                for folder in job.workdirs():
                    shutil.rmtree(folder, ignore_errors=True)
            todo.append(job)
        return todo

    def _ready(self, waiting: Sequence[Job]) -> list[Job]:
        """The jobs that may start now, given what is done and what is running."""
        ready = [job for job in waiting if all(name in self._done for name in job.needs)]
        alone = [job for job in ready if job.alone]
        if alone:
            return [] if self._running else alone
        return [] if any(job.alone for job in self._running) else ready

    def _run_job(self, job: Job, cores: list[int]) -> str:
        """Runs a job's commands. Returns '' or what went wrong."""
        start = time.time()
        log = os.path.join(self._output, 'logs', f'{job.name}.log')
        with open(log, 'w', encoding='utf-8') as file:
            for command in job.commands:
                print(f'[{job.name}] mvdjax {" ".join(command)}', flush=True)
                environment = {
                    **os.environ,
                    **KEEP_MEMORY,
                    'JAX_COMPILATION_CACHE_DIR': os.path.abspath(os.path.join(self._output, 'compiled')),
                }
                process = subprocess.Popen(
                    [sys.executable, '-m', 'mvdjax', *command], stdout=file, stderr=subprocess.STDOUT, env=environment
                )
                if cores:
                    psutil.Process(process.pid).cpu_affinity(cores)
                if process.wait():
                    with open(log, encoding='utf-8') as lines:
                        last = (lines.read().strip().splitlines() or ['no output'])[-1]
                    return f'[{job.name}] failed: {last} (whole log: {log}). Start the quickstart again to go on'
        seconds = round(time.time() - start, 1)
        print(f'[{job.name}] finished in {seconds:.0f} s', flush=True)
        with self._condition:
            self._done[job.name] = {'key': job.key(), 'seconds': seconds}
            with open(self._done_file + '.tmp', 'w', encoding='utf-8') as file:
                json.dump(self._done, file, indent=1)
            os.replace(self._done_file + '.tmp', self._done_file)
        return ''

    def _watch_memory(self, finished: threading.Event) -> None:
        """Peak of the summed resident memory of this process and all below it (shared pages count in each)."""
        this = psutil.Process()
        while not finished.wait(0.5):
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it has ended between the listing and the question
                    continue
            self.peak_rss = max(self.peak_rss, total)


def read_rows(output: str, method: Method) -> list[dict]:
    """The rows of the table from the results of the tests: {'name', 'motion', 'appearance'}, top-1 in percent."""
    rows = []
    for name in method.rows:
        row: dict = {'name': name}
        for labels in LABELS:
            with open(f'{output}/runs/{method.run(name, labels)}/results.json', encoding='utf-8') as file:
                row[labels] = json.load(file)['top1']
        rows.append(row)
    return rows


def format_table(rows: Sequence[dict], method: Method) -> str:
    """The table that the quickstart prints."""
    says = {name: row.text for name, row in method.rows.items()}
    width = max(36, *(len(text) + 2 for text in says.values()))
    lines = [f'{"top-1, % of the test videos":<{width}}{"motion":>10}{"appearance":>12}']
    lines += [f'{says[row["name"]]:<{width}}{row["motion"]:>10.1f}{row["appearance"]:>12.1f}' for row in rows]
    lines.append(f'{"chance":<{width}}{CHANCE["motion"]:>10.1f}{CHANCE["appearance"]:>12.1f}')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the quickstart. Returns the exit code."""
    parser = argparse.ArgumentParser(prog='python -m mvdjax.quickstart', description=__doc__)
    parser.add_argument('--method', choices=METHODS, default='mvd', help='how to pretrain (default: mvd)')
    parser.add_argument('--output', default='quickstart', help='folder for everything (default: quickstart)')
    parser.add_argument('--seed', type=int, default=0, help='of every training run (default: 0)')
    parser.add_argument('--started', type=float, default=time.time(), help='UNIX time that the total is counted from')
    parser.epilog = """example:
  python -m mvdjax.quickstart --method=bevt --output=quickstart

Several methods, and several calls, may share a folder: what is done is not done again, and the data are the same."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    args = parser.parse_args(argv)
    method = METHODS[args.method]
    runner = Runner(args.output)
    try:
        runner.run(make_jobs(args.output, args.seed, args.method))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    rows = read_rows(args.output, method)
    seconds = round(time.time() - args.started, 1)
    summary = {'rows': rows, 'chance': CHANCE, 'seconds': seconds, 'peak_rss_bytes': runner.peak_rss}
    with open(os.path.join(args.output, f'summary{method.suffix}.json'), 'w', encoding='utf-8') as file:
        json.dump(summary, file, indent=1)
    print(f'\n{format_table(rows, method)}\n')
    print(f'{seconds:.0f} s in all, at most {runner.peak_rss / 2**30:.1f} GiB of memory')
    print(f'pictures and curves: {args.output}/report{method.suffix}/report.html; everything else in {args.output}/')
    return 0


if __name__ == '__main__':
    sys.exit(main())
