"""SIGKILL at random moments: `python tests/integration/chaos.py [--kills 100] [--processes 2] [--seed 0]`.

One run of a tiny model on several processes is killed over and over, one process of it or all, while it starts, trains
or saves, and started again each time. Then it is let finish. Status 1 unless it ends exactly as a run that nobody
disturbed, loss by loss and parameter by parameter, and no checkpoint that could once be seen was ever lost or damaged.

A kill is placed by what its own start has done: while it starts, while it trains, while it saves, or while it deletes
an old checkpoint; all but the first kind mostly wait until this start has saved something. So the newest checkpoint
moves on from kill to kill, over many times as many saves as are kept: status 1, too, if it does not. The last `--saves`
kills come as soon as a save is under way. `--fork` starts each process as a fork of one that has imported everything:
the same program from its command line on, in two thirds of the time.
"""

import argparse
import ast
import collections
import contextlib
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import jax  # noqa: E402
import multiprocess  # noqa: E402
import small_runs  # noqa: E402
import watched_start  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from watched_start import PATIENCE  # noqa: E402

from mvdjax import checkpoints, integrity, saving  # noqa: E402
from mvdjax.settings import Run  # noqa: E402

GRACE = 30.0  # seconds that a launcher gives processes that have lost one of them: while they start they wait for it
AIMS = {'starting': 0.15, 'training': 0.25, 'saving': 0.3, 'deleting': 0.3}  # how often a kill waits for what


def value_of(text):
    """'1' as a number, 'cpu' as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


class Forked:
    """A process that is a fork of this one and runs a command line of mvdjax; looks like a `subprocess.Popen`."""

    def __init__(self, arguments, environment, log):
        sys.stdout.flush()
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            with contextlib.suppress(BaseException):
                os.setsid()
                handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                os.environ.update(environment)
                for name in [n for n in environment if n.startswith('JAX_')]:  # read when it was imported
                    jax.config.update(name.lower(), value_of(environment[name]))
                from mvdjax.main import main

                code = main(arguments)
                sys.stdout.flush()
            os._exit(code)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=PATIENCE):
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise TimeoutError
            time.sleep(0.05)
        return self.returncode


class Chaos:
    """A run, the hand that kills it, and what both have seen."""

    def __init__(self, root, *, processes, devices, steps, save_every, fork, seed):
        self.root, self.processes, self.steps, self.save_every, self.fork = root, processes, steps, save_every, fork
        self.random = random.Random(seed)
        overrides = (f'run.steps={steps}', 'run.ema_decay=0.9', 'run.hang_minutes=10')
        spec, more = small_runs.arguments('videomae', root / 'data', *overrides)
        self.arguments = ['train', f'--config={spec}', *more, '--config.run.compile_cache=']
        self.environment = {
            **multiprocess.environment(devices),
            **multiprocess.executables(root / 'cache'),
        }
        self.newest = 0  # the newest step that was ever seen
        self.gaps = [1.0]  # seconds from one save to the next
        self.lost = []
        self.moments = collections.Counter()
        self.exits = collections.Counter()
        self.cut_short = collections.Counter()
        self.redone = []

    def start(self, workdir, save_every):
        """The processes of a run, started."""
        arguments = [*self.arguments, f'--config.run.save_every={save_every}', f'--workdir={workdir}']
        lines = multiprocess.together(self.processes, arguments) if self.processes > 1 else [['', '', '', *arguments]]
        tails = [line[3:] for line in lines]
        logs = [self.root / f'{workdir.name}_{i}.log' for i in range(self.processes)]
        if self.fork:
            return [Forked(tail, self.environment, log) for tail, log in zip(tails, logs, strict=True)]
        children = []
        for tail, log in zip(tails, logs, strict=True):
            with open(log, 'ab') as file:
                command = multiprocess.mvdjax(*tail)
                children.append(
                    multiprocess.subprocess.Popen(
                        command, stdout=file, stderr=file, env=self.environment, start_new_session=True
                    )
                )
        return children

    def finish(self, workdir, save_every):
        """Runs to the end; seconds that it took."""
        start = time.monotonic()
        children = self.start(workdir, save_every)
        codes = [child.wait(PATIENCE * 4) for child in children]
        if any(codes):
            raise SystemExit(f'a run that nobody disturbed ended with {codes}; see {self.root}')
        return time.monotonic() - start

    def kill_once(self, workdir, usual, more, in_save):
        """Starts, kills, and looks at what is left.

        Args:
          workdir: of the run.
          usual: seconds that a start takes.
          more: kills that are to come after this one: the run is left steps for them.
          in_save: kill as soon as a save of a new step is under way, not at a random moment.

        Returns:
          Seconds until the first new step, or None if it never came to that.
        """
        start = watched_start.Start(workdir, self.start(workdir, self.save_every), self.newest)
        children = start.children
        victims = [self.random.randrange(len(children))] if self.random.random() < 2 / 3 else range(len(children))
        self.await_moment(start, usual, more, in_save)
        self.moments[start.doing()] += 1
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(children[victim].pid, signal.SIGKILL)
        until = time.monotonic() + GRACE
        for child in children:  # the others must notice, unless they have never met
            while child.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            if child.poll() is None:
                self.exits['ended as a launcher does'] += 1
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
            else:
                self.exits[child.poll()] += 1
        self.cut_short.update({'saves': start.saving(), 'deletions': start.deleting()})
        self.look(workdir)
        self.redone.append(max(0, start.last_step() - self.newest))
        times = sorted(start.saved.values())
        self.gaps += [b - a for a, b in itertools.pairwise(times)]
        return start.first

    def await_moment(self, start, usual, more, in_save):
        """Returns when it is time to kill; the arguments are those of `kill_once`."""
        aim = 'saving' if in_save else self.random.choices([*AIMS], AIMS.values())[0]
        if aim == 'starting':
            start.wait(seconds=self.random.uniform(0, usual))
            return
        left = (self.steps - self.newest) // self.save_every - more - 1  # one for each kill to come and for this one
        saves = min(self.random.choice((0, 1, 1, 1, 2)), max(0, left))
        most = min(saves + 1, max(0, left))
        rhythm = statistics.median(self.gaps)
        start.wait(lambda: start.first and len(start.saved) >= saves)
        if aim == 'saving':
            start.wait(start.saving)
            start.wait(lambda: in_save or not start.saving(), self.random.uniform(0, rhythm))
        elif aim == 'deleting' and start.will_delete():
            with watched_start.Renames(start.folder) as renames:
                start.wait(lambda: renames.came(saving.DELETED) or len(start.saved) > most, pause=0)
        else:
            start.wait(lambda: len(start.saved) > most, self.random.uniform(0, 2 * rhythm))
            start.wait(lambda: not start.saving() or len(start.saved) > most)

    def look(self, workdir):
        """Every checkpoint that has a name must be whole, and the newest must still be there."""
        folder = workdir / checkpoints.FOLDER
        steps = checkpoints.step_numbers(integrity.epath.Path(folder)) if folder.exists() else []
        for step in steps:
            record = integrity.read_record(integrity.epath.Path(folder / str(step)))
            problem = (
                'has no record'
                if record is None
                else integrity.check_files(integrity.epath.Path(folder / str(step)), record)
            )
            if problem:
                self.lost.append(f'step {step}: {problem}')
        if self.newest and self.newest not in steps and not any(step > self.newest for step in steps):
            self.lost.append(f'step {self.newest} is gone')
        if folder.exists() and any(p.name.startswith('damaged') for p in folder.iterdir()):
            self.lost.append('a checkpoint was set aside as damaged')
        self.newest = max([self.newest, *steps])


def differences(workdir, reference):
    """What differs between two finished runs, as sentences."""
    ours, theirs = small_runs.losses(workdir), small_runs.losses(reference)
    found = [f'loss of step {s}: {ours.get(s)!r}, not {theirs.get(s)!r}' for s in theirs if ours.get(s) != theirs[s]]
    if len(ours) != len(theirs):
        found.append(f'{len(ours)} losses instead of {len(theirs)}')
    for ema in (False, True):
        a, b = (checkpoints.read_params(str(w), use_ema=ema) for w in (workdir, reference))
        found += [f'{"ema" if ema else "params"} {name}' for name in b if a[name].tobytes() != b[name].tobytes()]
    return found


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--saves', type=int, default=0, help='kills, the last ones, right at the beginning of a save')
    parser.add_argument('--minutes', type=float, default=1e6, help='stop killing after so long')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--devices', type=int, default=2, help='of each process, simulated')
    parser.add_argument('--steps', type=int, help='of the run (default: two saves for each kill)')
    parser.add_argument('--save-every', type=int, default=2)
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(10**6), help='of the moments')
    parser.add_argument('--fork', action='store_true', help='start processes as forks, see above')
    parser.add_argument('--folder', type=Path, help='to work in, and to leave behind (default: a temporary one)')
    return parser.parse_args()


def main():
    args = parse()
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax's notes about its own files
    with contextlib.ExitStack() as stack:
        root = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        if not (root / 'data').exists():
            from mvdjax.data.demo import DemoSpec, write_demo

            write_demo(root / 'data', DemoSpec(32, 16, 8, 16, 32, workers=1), progress=False)
        if args.fork:
            import mvdjax.train  # noqa: F401 - what every fork starts with
        steps = args.steps or 2 * args.save_every * args.kills
        chaos = Chaos(
            root,
            processes=args.processes,
            devices=args.devices,
            steps=steps,
            save_every=args.save_every,
            fork=args.fork,
            seed=args.seed,
        )
        print(
            f'seed {args.seed}: {args.kills} kills of a run of {steps} steps on {args.processes} processes', flush=True
        )
        return judge(chaos, *torment(chaos, args))


def torment(chaos, args):
    """Runs once undisturbed, then under fire.

    Returns:
      Whether all kills came before the end, and the newest step that was saved at the last of them.
    """
    begin = time.monotonic()
    alone = chaos.finish(chaos.root / 'undisturbed', chaos.steps)
    print(f'undisturbed: {alone:.0f} s', flush=True)
    starts = []
    for number in range(1, args.kills + 1):
        try:
            more = args.kills - number
            usual = statistics.median(starts) if starts else alone / 2
            first = chaos.kill_once(chaos.root / 'killed', usual, more, in_save=more < args.saves)
        except watched_start.FinishedError:
            print(f'it has finished after {number - 1} kills: for more of them give it more --steps')
            return False, chaos.newest
        starts += [first] if first else []
        elapsed = time.monotonic() - begin
        if number % 5 == 0 or number < 5 or chaos.lost:
            where = dict(sorted(chaos.moments.items()))
            print(f'{number} kills in {elapsed:.0f} s: {where}, newest checkpoint {chaos.newest}', flush=True)
        if chaos.lost or elapsed > 60 * args.minutes:
            break
    return True, chaos.newest


def judge(chaos, all_came, reached):
    """Lets the run finish and prints what there is to say of it; the status to end with."""
    rest = chaos.finish(chaos.root / 'killed', chaos.save_every)
    chaos.look(chaos.root / 'killed')
    found = differences(chaos.root / 'killed', chaos.root / 'undisturbed')
    kills = sum(chaos.moments.values())
    saves, demanded = reached // chaos.save_every, min(5 * Run.keep, kills // 3)
    print(f'{kills} kills: {dict(sorted(chaos.moments.items()))}')
    print(f'half-done when all were dead: {dict(chaos.cut_short)}')
    print(f'newest checkpoint at the last kill: {reached}, of save {saves}; {Run.keep} are kept, the others deleted')
    print(f'finished {rest:.0f} s after the last kill; exit codes of all processes: {dict(chaos.exits)}')
    print(f'steps done again after a kill: {sum(chaos.redone)} in all, {max(chaos.redone, default=0)} at most')
    print(f'checkpoints lost or damaged: {len(chaos.lost)}', *chaos.lost[:5], sep='\n  ')
    print(f'differences from the undisturbed run: {len(found)}', *found[:5], sep='\n  ')
    if saves < demanded:
        print(f'the kills left it no time to get on: {saves} saves, and {demanded} are the least')
    return int(bool(found or chaos.lost or not all_came or saves < demanded))


if __name__ == '__main__':
    sys.exit(main())
