"""Writes docs/parity.md: how far every compared number is from the published code's. Run: python tests/write_parity.py

It runs the tests that compare with golden values and with Hugging Face's models, all through the converter, and notes
the largest differences that `golden_weights.assert_close` sees.
"""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TARGET = TESTS.parent / 'docs' / 'parity.md'
SUITES = (
    *('models/test_golden_models.py', 'test_golden_steps.py', 'tasks/test_golden_pixels.py', 'convert/test_hub.py'),
    *('models/test_video_swin.py', 'models/test_dvae.py', 'test_golden_bevt.py'),
    *('convert/test_swin.py', 'test_swin_handover.py'),
)
HEAD = """# Parity with the published code

Written by `python tests/write_parity.py`; not edited by hand. Weights with PyTorch names go through `mvdjax convert`'s
own code into the models here; the published implementations' numbers (tests/golden, float32) and Hugging Face's models,
run beside, are what they are compared with. `apart` is the largest absolute difference, beside the largest absolute
value of the quantity; `of tolerance` is the largest share of the allowed difference that is used up. Allowed is, for
MVD, VideoMAE and MAE (`mvd/`, `data/`): forward values 1e-4 + 1e-4 relative; losses 1e-5, gradients and parameters
after several steps 1e-3 relative. For BEVT, Video Swin and DALL-E's encoder (`bevt/`): features of the backbone 8e-6 +
2e-6 relative, scores and logits 1e-4 + 1e-4, losses 1e-5, gradients 1e-3 (single values 2e-3 + 2e-6), parameters after
several steps 2e-5, parameters and position biases taken over from another model 1e-6 + 1e-5. Codes and masks have to
be equal; the same tests compare every parameter's rate and decay.

{machine}

| case | quantity | values | largest value | apart | of tolerance |
|---|---|---:|---:|---:|---:|
"""


def merged(rows):
    """One row for each (case, quantity), in the order of their first appearance."""
    found = {}
    for row in rows:
        key = row['case'], row['quantity']
        old = found.setdefault(key, {**row, 'values': 0})
        old['values'] += row['values']
        for name in ('largest', 'apart', 'share'):
            old[name] = max(old[name], row[name])
    return found


def format_page(found, machine):
    lines = [
        f'| {case} | {quantity} | {row["values"]} | {row["largest"]:.4g} | {row["apart"]:.1e} | {row["share"]:.1%} |'
        for (case, quantity), row in sorted(found.items())
    ]
    return HEAD.format(machine=machine) + '\n'.join(lines) + '\n'


def main():
    """Runs the tests and writes the page; fails if a test does."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ['MVDJAX_PARITY'] = str(Path(folder) / 'rows.jsonl')
        code = pytest.main(['-q', '-p', 'no:cacheprovider', *(str(TESTS / suite) for suite in SUITES)])
        if code:
            return int(code)
        rows = [json.loads(line) for line in Path(os.environ['MVDJAX_PARITY']).read_text().splitlines()]
    import jax
    import torch
    import transformers

    versions = f'jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}'
    TARGET.write_text(format_page(merged(rows), f'Measured on a {platform.machine()} CPU with {versions}.'))
    return 0


if __name__ == '__main__':
    sys.exit(main())
