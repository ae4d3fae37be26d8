"""The evaluations of a run: when they are due, which are owed, and how they end when the run is told to stop."""

from collections.abc import Mapping
from typing import Any

from mvdjax import processes
from mvdjax.console import say
from mvdjax.evaluate import SetEvaluator, summary
from mvdjax.hang import Watch
from mvdjax.metric_writer import MetricWriter, read_metrics
from mvdjax.place import Place
from mvdjax.preemption import Notice


def owed(place: Place, names: Mapping[str, Any], workdir: str) -> list[str]:
    """The evaluation sets that belong to the step of a place and have no line in `metrics.jsonl` yet.

    A step is saved before it is evaluated, so its checkpoint cannot tell how far that came. All processes must call it.
    """
    if not place.owes_evaluation:
        return []
    lines = read_metrics(workdir) if processes.is_main() else []
    done = {line['kind'] for line in lines if line['step'] == place.step}
    found: list[str] = processes.broadcast([name for name in names if name not in done], 'evaluations owed')
    return found


class Evaluations:
    """Runs the evaluations that belong to a step."""

    def __init__(
        self, evaluators: Mapping[str, SetEvaluator], every: int, writer: MetricWriter, watch: Watch, notice: Notice
    ) -> None:
        """`evaluators` by the name of their set; `every` so many steps, and at the last one."""
        self._evaluators, self._every = evaluators, every
        self._writer, self._watch, self._notice = writer, watch, notice

    def due(self, step: int, last: bool) -> bool:
        """Whether any belong to this step."""
        return bool(self._evaluators) and (last or step % self._every == 0)

    def __call__(self, step: int, params: Any, frozen: Any, names: list[str] | None = None) -> bool:
        """Evaluates, and writes down what was found: all sets, or those named.

        Returns:
          Whether the run was told to stop meanwhile, on all processes alike. Sets that were not finished have no line.
        """
        for name in self._evaluators if names is None else names:
            found = self._evaluators[name](params, frozen, self._stop)
            if not found:
                return True
            self._writer.write(step, name, found)
            say(f'step {step} {name}: {summary(found, None)}')
        return False

    def _stop(self) -> bool:
        self._watch.beat()
        return self._notice.reached()
