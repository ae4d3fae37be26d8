"""Something-Something v2: JSON files of id and template; a template without its brackets is the name of a class."""

from mvdjax.data.datasets.tree import Annotation, Item, Tree
from mvdjax.data.schema import Record
from mvdjax.data.sources import NO_LABEL
from mvdjax.errors import UserError

PREFIX = r'(?:something-something-v2-)?'  # the first distribution had it, the present one does not
FILES = {'train': 'train', 'val': 'validation', 'test': 'test'}


def _names(tree: Tree) -> tuple[str, ...]:
    file = tree.need('labels.json', PREFIX + r'labels\.json')
    numbers = {name: int(number) for name, number in tree.json(file).items()}
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise UserError(f'{tree.path(file)}: the classes are not numbered from 0 without gaps; fetch the file again')
    return tuple(sorted(numbers, key=numbers.__getitem__))


def _class(template: object) -> str:
    return str(template).replace('[', '').replace(']', '')


def read(tree: Tree, split: str) -> Annotation:
    """A split. The test split has labels where test-answers.csv is there."""
    names = _names(tree)
    numbers = {name: i for i, name in enumerate(names)}
    file = tree.need(f'{FILES[split]}.json', PREFIX + FILES[split] + r'\.json')
    answers: dict[str, str] = {}
    if split == 'test' and (given := tree.maybe(PREFIX + r'test-answers\.csv')):
        answers = {fields[0]: ';'.join(fields[1:]) for _, fields in tree.rows(given, ';')}
    items = []
    for position, entry in enumerate(tree.json(file), start=1):
        where = f'{tree.path(file)}: entry {position}'
        try:
            video = str(entry['id'])
            template = entry.get('template') or answers.get(video)
        except (TypeError, KeyError, AttributeError):
            raise UserError(f'{where} has no id; fetch the file again') from None
        if template is None and split != 'test':
            raise UserError(f'{where} ({video}) has no template; fetch the file again')
        label = NO_LABEL if template is None else numbers.get(_class(template))
        if label is None:
            raise UserError(f'{where} ({video}): no class {_class(template)!r} in labels.json; fetch both files again')
        items.append(Item((video,), Record('', label, position)))
    return Annotation(tree.path(file), items, names)
