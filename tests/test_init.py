"""The public names."""

import ldpruner


def test_the_public_names_are_these() -> None:
    assert ldpruner.__all__ == sorted(ldpruner.__all__, key=lambda name: (name.islower(), name))
    assert set(ldpruner.__all__) == {
        "Budget",
        "Evaluation",
        "LdPrunerError",
        "Operator",
        "Plan",
        "Probe",
        "Score",
        "Scores",
        "Training",
        "evaluate",
        "find_operators",
        "finetune",
        "load",
        "prune",
        "prune_",
        "save",
        "score_operators",
        "select",
    }
    assert all(getattr(ldpruner, name) for name in ldpruner.__all__)
