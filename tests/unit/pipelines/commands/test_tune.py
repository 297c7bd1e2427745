"""``metalora tune``: the settings of its trials."""

import pytest

from pipelines.commands import tune


@pytest.mark.parametrize(("asked", "workers"), [("0", 1), ("1", 1), ("2", 2)])
def test_a_trial_has_a_worker_at_least(monkeypatch, tmp_path, asked, workers):
    monkeypatch.chdir(tmp_path)
    plans = []
    monkeypatch.setattr(tune, "run_campaign", lambda plan, resume, dry_run: plans.append(plan))
    tune.main(["--space", "quick", "--workers", asked])
    assert plans[0].config.cluster.workers == workers
