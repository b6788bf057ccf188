"""Metrics and ranks against ranx, live, where nothing ties."""

import numpy as np
import pytest
from measured import evaluate_random_world
from random_world import KS, N_USERS, best_unseen, random_world

THEIR_NAMES = {"hr": "hit_rate", "ndcg": "ndcg", "mrr": "mrr", "recall": "recall"}


@pytest.fixture(scope="module")
def measured():
    return evaluate_random_world(KS)


@pytest.fixture(scope="module")
def theirs():
    """Metrics by name and event, [U]."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes a minute, running as it is a second
        import ranx
    world, longest = random_world(), max(KS)
    users = [f"u{u:04}" for u in range(N_USERS)]
    relevant = {user: {str(item): 1} for user, item in zip(users, world.target_U, strict=True)}
    lists = {
        user: {str(item): float(longest - place) for place, item in enumerate(items)}
        for user, items in zip(users, best_unseen(world, longest), strict=True)
    }
    names = [f"{name}@{k}" for name in THEIR_NAMES.values() for k in KS]
    found = ranx.evaluate(ranx.Qrels(relevant), ranx.Run(lists), names, return_mean=False)
    return {name: np.asarray(values) for name, values in found.items()}


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("name", THEIR_NAMES)
def test_metrics_are_those_of_ranx(measured, theirs, name, k):
    wanted = theirs[f"{THEIR_NAMES[name]}@{k}"].mean()
    assert 0 < measured.metrics[f"{name}@{k}"] == pytest.approx(wanted, rel=1e-12)


def test_ranks_are_those_of_ranx_event_by_event(measured, theirs):
    reciprocal_E = theirs[f"mrr@{max(KS)}"]
    rank_E = np.where(measured.rank_E <= max(KS), measured.rank_E, np.inf)
    np.testing.assert_allclose(1 / rank_E, reciprocal_E)
