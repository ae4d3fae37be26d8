"""docs/parity.md is there, covers every golden model case, and lies within the tolerances."""

import re

from golden_weights import GOLDEN
from write_parity import TARGET, format_page, merged

ROW = re.compile(r'\| (.+) \| (.+) \| (\d+) \| (\S+) \| (\S+) \| ([\d.]+)% \|')


def test_the_page_covers_every_case():
    rows = [ROW.fullmatch(line).groups() for line in TARGET.read_text().splitlines() if line.endswith('% |')]
    cases = {f'mvd/{path.stem}' for path in (GOLDEN / 'mvd').glob('*.json')}
    cases |= {f'data/{path.stem}' for path in (GOLDEN / 'data').glob('*mae_*.json')}
    cases |= {f'bevt/{path.stem}' for path in (GOLDEN / 'bevt').glob('*_*.npz') if path.stem != 'masks_pretrain'}
    cases |= {'VideoMAEForPreTraining', 'VideoMAEForVideoClassification', 'ViTMAEForPreTraining'}
    assert cases <= {row[0] for row in rows}
    assert all(float(row[5]) < 100 for row in rows)


def test_rows_of_one_quantity_are_merged():
    row = {'case': 'a', 'quantity': 'b', 'values': 2, 'largest': 3.0, 'apart': 1e-6, 'share': 0.5}
    found = merged([row, {**row, 'apart': 2e-6, 'share': 0.25}])
    assert found['a', 'b'] == {**row, 'values': 4, 'apart': 2e-6}
    assert format_page(found, 'here').endswith('| a | b | 4 | 3 | 2.0e-06 | 50.0% |\n')
