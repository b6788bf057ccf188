import pytest

from lexrec.errors import ProtocolError
from lexrec.evaluation.protocol import Protocol

MEASURED = Protocol(
    lexrec="0.1.0",
    data="abc",
    split_rule="leave-one-out",
    split="test",
    seen="remove",
    ties="expected",
    candidates="all",
    n_candidates=100,
    n_events=50,
    n_unreachable=0,
    k=(5, 10),
    selected_on="validation",
)


def changed(**fields):
    return Protocol.model_validate({**MEASURED.model_dump(), **fields})


def test_equal_protocols_compare():
    MEASURED.require_alike(changed())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", "xyz"),
        ("split_rule", "time"),
        ("split", "validation"),
        ("seen", "keep"),
        ("ties", "optimistic"),
        ("candidates", "train"),
        ("n_candidates", 99),
        ("n_events", 49),
        ("n_unreachable", 3),
    ],
)
def test_whatever_changes_the_meaning_of_a_number_is_refused_and_named(field, value):
    other = changed(**{field: value})
    wanted = f"not measured alike .*{field}: {getattr(MEASURED, field)}, {value}.*evaluate both again"
    with pytest.raises(ProtocolError, match=wanted):
        MEASURED.require_alike(other)


def test_every_difference_is_named():
    found = MEASURED.differences(changed(seen="keep", n_events=49))
    assert found == ["seen: remove, keep", "n_events: 50, 49"]


@pytest.mark.parametrize(
    "fields", [{"k": (20,)}, {"lexrec": "0.2.0"}, {"allow_leak": True}, {"selected_on": "nothing"}]
)
def test_what_leaves_the_numbers_comparable_is_let_through(fields):
    MEASURED.require_alike(changed(**fields))


def test_a_model_chosen_on_the_test_set_is_refused_beside_one_that_was_not():
    peeked = changed(selected_on="test")
    assert peeked.is_peeked
    with pytest.raises(ProtocolError, match="selected_on: validation, test"):
        MEASURED.require_alike(peeked)


def test_what_nothing_chose_compares_with_both_but_not_under_other_rules():
    baseline, peeked = changed(selected_on="nothing"), changed(selected_on="test")
    baseline.require_alike(peeked)
    peeked.require_alike(baseline)
    with pytest.raises(ProtocolError, match=r"not measured alike \(seen: keep, remove\)"):
        changed(selected_on="test", seen="keep").require_alike(baseline)


def test_a_protocol_survives_json():
    assert Protocol.model_validate_json(MEASURED.model_dump_json()) == MEASURED
