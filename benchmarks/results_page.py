"""All tables of the documents, from the committed records, and the curves of weight preservation.

python -m benchmarks.results_page
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, starmap

from benchmarks import (
    adaptive_replay,
    choices,
    comparison_tables,
    coverage,
    demo,
    few_step,
    finetuning_defaults,
    granularity,
    latency_predictions,
    lora_recovery,
    lora_transfer,
    main_results,
    metric_design,
    recovery,
    selection_rules,
    stacking,
    support,
    tasks,
    training_memory,
)
from benchmarks.cells import cells_of
from benchmarks.models import MEASURED
from benchmarks.records import ROOT, write_table

DOCUMENTS = ROOT / "docs"


def main() -> None:
    """Writes every table between its markers, and draws the curves."""
    cells = {model: cells_of(model) for model in MEASURED}
    tables: Mapping[str, Callable[[], Iterator[str]]] = {
        "experiments/comparison.md: comparison": lambda: chain.from_iterable(
            starmap(comparison_tables.comparison, cells.items())
        ),
        "experiments/comparison.md: long finetuning": lambda: iter(comparison_tables.long_finetuning(cells)),
        "experiments/comparison.md: without data": lambda: iter(comparison_tables.without_data(cells)),
        "prune-your-own.md: forecast": granularity.forecast_table,
        "experiments/granularity.md: plans": granularity.plans_table,
        "experiments/autoguidance.md: trials": lambda: iter(comparison_tables.trials(cells)),
        "experiments/metric-design.md: metrics": metric_design.tables,
        "experiments/adaptive-scoring.md: replays": adaptive_replay.table,
        "experiments/adaptive-scoring.md: finetuned": adaptive_replay.finetuned_table,
        "experiments/selection-rules.md: rules": selection_rules.table,
        "experiments/latency-predictions.md: latency": latency_predictions.table,
        "experiments/lora-transfer.md: lora": lora_transfer.table,
        "experiments/lora-recovery.md: lora recovery": lora_recovery.table,
        "experiments/stacking.md: stacking": stacking.table,
        "experiments/stacking.md: compute bound": stacking.compute_bound_table,
        "experiments/training-memory.md: memory": training_memory.table,
        "experiments/end-to-end.md: demo": demo.table,
        "experiments/end-to-end.md: tasks": tasks.table,
        "experiments/coverage.md: coverage": coverage.table,
        "experiments/support.md: support summary": support.summary,
        "experiments/support.md: support": support.table,
        "experiments/support.md: recovery summary": recovery.summary,
        "experiments/support.md: recovery": recovery.table,
        "experiments/few-step.md: few-step": few_step.table,
        "experiments/choices.md: choices": choices.table,
        "experiments/finetuning-defaults.md: finetuning defaults": finetuning_defaults.table,
        "experiments/finetuning-defaults.md: finetuning length": finetuning_defaults.length_table,
        "results.md: headline": main_results.headline,
        "results.md: comparison": main_results.comparison,
        "../README.md: demo": demo.readme,
        "../README.md: headline": main_results.readme,
    }
    for place, table in tables.items():
        document, _, name = place.partition(": ")
        write_table(name, table(), DOCUMENTS / document)
    comparison_tables.draw_curves(cells)


if __name__ == "__main__":
    main()
