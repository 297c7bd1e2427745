"""The paper's questions: decomposition format x rank x mapping-net depth x learning rate.

SPACE is a list of alternatives, as in scikit-learn's ``param_grid``: a setting that stands in one alternative only is
conditional on it (the static formats have no mapping net, so no depth). Names are those of ``metalora train --help``.
SETTINGS hold for every trial, CAMPAIGN is how the space is searched; the command line overrides both.
"""

from ray import tune

RATE = tune.loguniform(1e-3, 3e-2)
RANK = tune.choice([4, 8, 16])
DEPTH = tune.choice([1, 2, 3])

SPACE = [
    {"format": "lora", "rank": RANK, "lr": RATE},
    {"format": "multi_lora", "rank": tune.choice([1, 2, 4]), "lr": RATE},  # 4 branches of that rank
    {"format": "cp", "rank": RANK, "mapping_depth": DEPTH, "lr": RATE},
    {"format": "tr", "rank": tune.choice([2, 3, 4]), "mapping_depth": DEPTH, "lr": RATE},  # rank R: R x R channels
]
SETTINGS: dict[str, object] = {}
CAMPAIGN = {"searcher": "optuna", "scheduler": "asha", "trials": 48}
