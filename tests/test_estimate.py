"""What a run takes: the counts are those of the formulas."""

from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline

from ldpruner import Probe, Training
from ldpruner.estimate import count_denoising, evaluation_stage, finetuning_stage, scoring_stage
from ldpruner.pipelines.meta import open_meta
from ldpruner.recipes import estimate_recipe, read_recipe
from tests.families import FAMILIES

ROOT = Path(__file__).parents[1]
LOSSES: dict[str, Any] = {"task_loss_weight": 1.0, "output_kd_weight": 0.0, "feature_kd_weight": 0.0}


def test_the_numbers_of_stable_diffusion_are_those_of_the_formulas() -> None:
    """401.6 GMACs as field measurements have it; two rows under guidance; 65.1 % of the latency are kept."""
    pipeline = open_meta(ROOT / "tests" / "architectures" / "stable-diffusion-v1-4")
    answer = estimate_recipe(read_recipe(ROOT / "recipes" / "sd14-coco.yaml"), pipeline, tflops=50)
    assert (answer.parameters, answer.rows) == (859_520_964, 2)
    assert answer.macs / 1e9 == pytest.approx(401.6, rel=1e-3)
    stages = answer.stages
    assert stages["scoring"].calls == (1 + answer.modifications) * 64 * 25 * 2
    assert stages["finetuning"].calls == 50_000 * 256 * 2
    assert stages["evaluation"].calls == 3 * 30_000 * 25 * 2
    trained = 12_800_000 * (1 + 4 * 0.651)  # the teacher; forth, forth again for checkpointing, and back twice
    assert stages["finetuning"].macs / answer.macs == pytest.approx(trained)
    assert stages["evaluation"].macs / answer.macs == pytest.approx(1_500_000 * 2.651)
    assert stages["finetuning"].hours == pytest.approx(trained * answer.macs * 2 / 50e12 / 3600)


def test_autoguidance_costs_a_call_of_the_pruned_denoiser_too(tiny: DiffusionPipeline) -> None:
    """Besides the teacher's, also where nothing else asks the teacher."""
    denoising, probe = count_denoising(tiny, Probe()), Probe()
    alone, guided = (
        finetuning_stage(
            denoising,
            probe,
            Training(max_train_steps=10, train_batch_size=4, autoguidance_scale=scale, **LOSSES),
            examples=0,
            kept=0.5,
        )
        for scale in (0.0, 1.0)
    )
    assert (alone.calls, guided.calls) == (40, 120)
    assert guided.macs == pytest.approx(40 * (1 + 0.5 + 3 * 0.5) * denoising.macs)


def test_budgets_bound_the_samples_of_each_modification(tiny: DiffusionPipeline) -> None:
    denoising, probe = count_denoising(tiny, Probe()), Probe(samples=64, steps=2)
    one, three, all_samples = (scoring_stage(denoising, probe, budgets).calls for budgets in (1, 3, None))
    assert one < three < all_samples == 64 * 2 * (1 + denoising.modifications)


def test_patterns_leave_less_to_score(tiny: DiffusionPipeline) -> None:
    all_of_it = count_denoising(tiny, Probe())
    some = count_denoising(tiny, Probe(), ignore=("*norm*",))
    assert some.modifications < all_of_it.modifications
    assert some.macs == all_of_it.macs


def test_stages_add(tiny: DiffusionPipeline) -> None:
    denoising = count_denoising(tiny, Probe())
    stage = evaluation_stage(denoising, Probe(), 8, kept=1.0)
    assert (stage + stage).calls == 2 * stage.calls == 2 * 3 * 8 * 25


def test_a_granularity_counts_its_own_modifications_and_all_calls_of_a_step() -> None:
    """Wan calls its denoiser twice a step, and each block holds three residual branches."""
    family = FAMILIES["wan"]
    probe = Probe(samples=2, steps=3, call=dict(family.call))
    block, leaf = (count_denoising(family.pipeline(), probe, granularity=level) for level in ("block", "leaf"))
    assert block.levels == leaf.levels
    assert block.levels["branch"] == 4 * block.levels["block"]
    assert (block.modifications, leaf.modifications) == (block.levels["block"], block.levels["leaf"])
    assert scoring_stage(block, probe, None).calls == (1 + block.levels["block"]) * 2 * 3 * 2
    assert scoring_stage(leaf, probe, None, granularity="block") == scoring_stage(block, probe, None)


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(
    ("name", "levels", "default"),
    [
        ("stable-diffusion-v1-4", {"block": 55, "branch": 103, "leaf": 410}, "leaf"),
        ("flux-1-dev", {"block": 57, "branch": 228, "leaf": 883}, "branch"),
    ],
)
def test_levels_of_published_networks(name: str, levels: dict[str, int], default: str) -> None:
    """Flux has 19 blocks of five branches and 38 of two."""
    denoising = count_denoising(open_meta(ROOT / "tests" / "architectures" / name), Probe(prompts=("a",)))
    assert (denoising.levels, denoising.granularity) == (levels, default)
