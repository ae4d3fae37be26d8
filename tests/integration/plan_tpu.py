"""`mvdjax plan` through libtpu's compile-only client: one step that fits a TPU slice, one that does not, one bad name.

Needs the extra `tpu` and no TPU; takes a few minutes. Run it by hand:

    python tests/integration/plan_tpu.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIGS = Path(__file__).parent.parent.parent / 'configs'


def plan(*arguments: str) -> tuple[int, str, dict]:
    """(exit code, last line of what it printed, the plan as JSON or {})."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / 'plan.json'
        command = [sys.executable, '-m', 'mvdjax', 'plan', *arguments, f'--output={output}']
        done = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parent, timeout=1800)
        lines = [*done.stdout.splitlines(), *(line for line in done.stderr.splitlines() if line.startswith('error'))]
        print(*lines, f'exit code {done.returncode}', '', sep='\n', flush=True)
        return done.returncode, lines[-1], json.loads(output.read_text()) if output.exists() else {}


def main() -> None:
    """Plans and checks."""
    small = f'--config={CONFIGS}/videomae/k400_vit_s.py:debug'
    code, _, made = plan(small, '--topology=v5e:2x2', '--records=1000')
    model = sum(made['flops']['model_per_clip'].values())
    assert code == 0
    assert made['memory']['fits'] is True
    assert 0.9 < made['flops']['executed_per_clip'] / model < 1.1  # layers are scanned, and counted as they run
    assert made['flops']['counted_once_per_clip'] < model * 1.5
    assert [row['kind'] for row in made['collectives']] == ['all-reduce']
    assert made['time']['seconds_step'] > 0

    large = f'--config={CONFIGS}/videomae/k400_vit_s.py'
    code, last, made = plan(large, '--topology=v5e:2x2')  # 256 clips at a time on a device of 16 GiB
    assert code == 1
    assert made['memory']['needed'] > made['memory']['limit'] > 15 * 2**30
    assert last.startswith('does not fit: a step takes ')

    code, last, _ = plan(small, '--topology=v5e:3x5')
    assert code == 1
    assert last.startswith('error: libtpu')
    print('as expected')


if __name__ == '__main__':
    main()
