"""What MLTFR adds to item vectors, and by which option."""

from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from lexrec.data.batch import Batch, collate
from lexrec.errors import ConfigError
from lexrec.item_encoders._interest import anchor_lengths, prefix_means
from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.item_encoders.base import Catalogue
from lexrec.item_encoders.mltfr import Mltfr
from tests import components
from tests.components import MAX_LEN, N_ITEMS, packed, ragged


def encoder(seed: int = 0, **options: object) -> Mltfr:
    torch.manual_seed(seed)
    built = components.build_encoder("mltfr", **options)
    assert isinstance(built, Mltfr)
    return built.eval()


def added(built: Mltfr, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return built(batch).x_BLD - built.lookup(batch.item_BL)


def chosen_at_each_prefix(built: Mltfr, items: Sequence[int]) -> torch.Tensor:
    """The first expert's tokens for each prefix, from means taken one by one."""
    vectors = built.lookup(torch.tensor(items))
    interests = torch.stack([vectors[: t + 1].mean(0) for t in range(len(items))])
    return built.experts[0].choose(interests).token_MK


def test_the_interest_of_a_position_is_the_mean_of_the_items_up_to_it() -> None:
    built, batch = encoder(), packed(ragged())
    seen = []
    handle = built.experts[0].register_forward_hook(lambda module, given, out: seen.append((given, out[1])))
    added(built, batch)
    handle.remove()
    (query_N1D, _, unit), chosen = seen[0]
    assert unit is None
    assert_close(query_N1D[:8, 0], built.lookup(torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])))
    assert torch.equal(chosen.token_MK[:8], chosen_at_each_prefix(built, [3, 1, 4, 1, 5, 9, 2, 6]))


def test_the_mask_is_no_interest_unless_nothing_else_is_known() -> None:
    built = encoder()
    mask = N_ITEMS + 1
    batch = collate([[4, mask, 7, mask], [mask, mask]], 4)
    e_BLD = built.lookup(batch.item_BL)
    mean_BLD = prefix_means(batch, e_BLD, built.mask_index)
    four, seven, masked = (built.lookup(torch.tensor(i)) for i in (4, 7, mask))
    assert_close(mean_BLD[0], torch.stack([four, four, (four + seven) / 2, (four + seven) / 2]))
    assert_close(mean_BLD[1, 2:], torch.stack([masked, masked]))


@pytest.mark.parametrize(
    ("refresh", "expected"),
    [
        (0.0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (0.5, [1, 2, 3, 4, 6, 9]),
        (1.0, [1, 2, 4, 8]),
    ],
)
def test_anchors_grow_with_the_prefix(refresh: float, expected: list[int]) -> None:
    assert anchor_lengths(10, refresh) == expected


def test_between_anchors_the_last_choice_holds() -> None:
    items = [3, 1, 4, 1, 5, 9, 2, 6]
    rows = [items, [5], [], [8, 9, 7]]
    built = encoder(refresh=1.0)
    seen = []
    handle = built.experts[0].register_forward_hook(lambda module, given, out: seen.append(out[1]))
    added(built, packed(ragged(rows)))
    handle.remove()
    fresh = chosen_at_each_prefix(built, items)
    held = torch.stack([fresh[i] for i in (0, 1, 1, 3, 3, 3, 3, 7)])
    assert torch.equal(seen[0].token_MK[:8], held)
    assert torch.equal(seen[0].token_MK[8], chosen_at_each_prefix(built, [5])[0])


def test_a_small_refresh_equals_none() -> None:
    batch = packed(ragged())
    assert_close(added(encoder(refresh=0.01), batch), added(encoder(), batch))


@pytest.mark.parametrize("refresh", [0.0, 0.5])
def test_prefix_interest_is_causal_also_while_training(refresh: float) -> None:
    built = encoder(refresh=refresh, dropout=0.0).train()
    one, other = (collate([[1, 2, 3, 4, 5, last]], MAX_LEN) for last in (6, 12))
    outputs = []
    for batch in (one, other):
        torch.manual_seed(3)
        outputs.append(built(batch).x_BLD)
    assert torch.equal(outputs[0][:, :-1], outputs[1][:, :-1])


def test_the_mixture_is_no_longer_than_its_cap() -> None:
    batch = ragged()
    loud = encoder(cap=0.3)
    with torch.no_grad():
        for expert in loud.experts:
            expert.attention.out.bias.fill_(5.0)
    length_BL = added(loud, batch).norm(dim=-1)
    item_length_BL = loud.lookup(batch.item_BL).norm(dim=-1)
    assert_close(length_BL[batch.is_item_BL], 0.3 * item_length_BL[batch.is_item_BL])
    with torch.no_grad():
        for expert in loud.experts:
            expert.attention.out.bias.zero_()
    assert_close(added(loud, batch), added(encoder(cap=None), batch))


def test_the_gate_weighs_the_experts() -> None:
    built, batch = encoder(cap=None), ragged()
    with torch.no_grad():
        built.gate.weight.zero_()
        built.gate.bias.copy_(torch.tensor([50.0, -50.0]))
    view = built.inspect(batch)
    assert [v.table for v in view] == ["a+scaled", "b+scaled"]
    assert_close(view[0].gate_B, torch.ones(4))
    with torch.no_grad():
        built.experts[1].attention.out.bias.fill_(100.0)
    assert added(built, batch).abs().max() < 1


def test_a_second_softmax_squeezes_the_gate() -> None:
    built, twice = encoder(), encoder(gate="double_softmax")
    with torch.no_grad():
        for one in (built, twice):
            one.gate.bias.copy_(torch.tensor([50.0, -50.0]))
    share = twice.inspect(ragged())[0].gate_B[0].item()
    assert share == pytest.approx(torch.tensor([1.0, 0.0]).softmax(0)[0].item(), abs=1e-4)


def test_inspect_shows_the_newest_choice() -> None:
    built = encoder()
    view = built.inspect(collate([[3, 1, 4]], MAX_LEN))[0]
    assert torch.equal(view.token_BK[0], chosen_at_each_prefix(built, [3, 1, 4])[-1])
    assert_close(view.weight_BK.sum(1), torch.ones(1))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_inspect_shows_what_the_model_read_between_anchors(n: int) -> None:
    items = [3, 1, 4, 1, 5, 9, 2, 6][:n]
    built = encoder(refresh=1.0)
    latest = max(a for a in (1, 2, 4, 8) if a <= n)
    view = built.inspect(collate([items, [5]], MAX_LEN))[0]
    assert torch.equal(view.token_BK[0], chosen_at_each_prefix(built, items)[latest - 1])
    assert torch.equal(view.token_BK[1], chosen_at_each_prefix(built, [5])[0])


def test_noise_belongs_to_training() -> None:
    built, batch = encoder(dropout=0.0), ragged()
    calm = built(batch).x_BLD
    assert torch.equal(calm, built(batch).x_BLD)
    built.train()
    assert not torch.equal(built(batch).x_BLD, built(batch).x_BLD)
    noisy = encoder(dropout=0.0, eval_noise=True)
    assert not torch.equal(noisy(batch).x_BLD, noisy(batch).x_BLD)


def test_a_frozen_filter_does_not_learn_and_a_learned_one_does() -> None:
    for how, learns in (("learned", True), ("frozen", False)):
        built = encoder(filter=how).train()
        built(ragged()).x_BLD.square().sum().backward()
        gradient = built.experts[0].align.weight.grad
        assert (gradient is not None and gradient.abs().sum() > 0) == learns


@pytest.mark.parametrize("bends", [False, True])
def test_the_choice_pulls_at_item_vectors_only_if_asked(bends: bool) -> None:
    built = encoder(bends_items=bends, dropout=0.0)
    interest_MD = torch.randn(3, components.DIM, requires_grad=True)
    bias_MK = built.experts[0].choose(interest_MD).bias_MK
    assert bias_MK is not None
    assert (bias_MK == 0).all()
    bias_MK[:, 0].sum().backward()
    assert (interest_MD.grad is not None) == bends


def test_pooling_a_batch_lets_users_read_each_others_tokens() -> None:
    """The release's fault, kept as an option and shown for what it is."""
    batch = ragged()
    changed_BL = batch.item_BL.clone()
    changed_BL[0] = 12
    changed = batch._replace(item_BL=changed_BL)
    options = {"interest": "sequence", "cap": None}
    per_user, pooled = encoder(**options), encoder(pool="batch", **options)
    assert_close(added(per_user, batch)[3], added(per_user, changed)[3])
    assert not torch.allclose(added(pooled, batch)[3], added(pooled, changed)[3], atol=1e-7)


def test_tables_are_frozen_unless_tuned() -> None:
    plain, tuned = encoder(), encoder(tune_tables=True)
    assert not any("table_VW" in name for name, _ in plain.named_parameters())
    assert not any("table_VW" in name for name in plain.state_dict())
    tuned.train()(ragged()).x_BLD.sum().backward()
    assert tuned.experts[0].table_VW.grad.abs().sum() > 0


def test_after_block0_leaves_the_input_plain() -> None:
    built, batch = encoder(inject="after_block0"), ragged()
    embedded = built(batch)
    assert torch.equal(embedded.x_BLD, built.lookup(batch.item_BL))
    assert embedded.after_block0_BLD is not None
    assert_close(embedded.after_block0_BLD, added(encoder(), batch))


@pytest.mark.parametrize("scale", ["unit", "rms", "raw"])
def test_tables_are_scaled_as_a_whole(scale: str) -> None:
    weight_VW = encoder(table_scale=scale).experts[0].table_VW.float()
    rms = weight_VW.square().mean().sqrt().item()
    raw = components.table("a").weight_VW.float().square().mean().sqrt().item()
    assert rms == pytest.approx({"unit": 24**-0.5, "rms": 1.0, "raw": raw}[scale], rel=0.01)


def test_random_tables_have_the_shape_and_scale_of_real_ones() -> None:
    real, noise, again = (
        encoder(table_scale="raw"),
        *(encoder(table_scale="raw", random_seed=5) for _ in "12"),
    )
    for a, b, c in zip(real.experts, noise.experts, again.experts, strict=True):
        assert a.table_VW.shape == b.table_VW.shape
        assert not torch.equal(a.table_VW, b.table_VW)
        assert torch.equal(b.table_VW, c.table_VW)
        assert b.table_VW.float().std().item() == pytest.approx(a.table_VW.float().std().item(), rel=0.1)


def test_max_tokens_keeps_the_first() -> None:
    built = encoder(max_tokens=10)
    assert [len(expert.table_VW) for expert in built.experts] == [10, 10]
    assert max(int(v.token_BK.max()) for v in built.inspect(ragged())) < 10


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ValidationError, match="pool=batch needs interest=sequence"):
        MltfrConfig(pool="batch")
    with pytest.raises(ValidationError, match="refresh belongs to interest=prefix"):
        MltfrConfig(interest="sequence", refresh=0.5)
    with pytest.raises(ConfigError, match="2 tables named, 0 given"):
        Mltfr(MltfrConfig(), Catalogue(N_ITEMS, 8))


def test_a_frozen_filter_weighs_rows_as_its_estimator_does() -> None:
    options = {"estimator": "release", "cap": None}
    learned, frozen = encoder(**options), encoder(filter="frozen", **options)
    assert_close(added(frozen, ragged()), added(learned, ragged()))


def test_what_changes_the_weights_drops_the_constants() -> None:
    other, batch = encoder(seed=1), ragged()
    expected = other(batch).x_BLD
    built = encoder()
    built.freeze()
    built.load_state_dict(other.state_dict())
    assert_close(built(batch).x_BLD, expected)
    built.freeze()
    assert built.double()(batch).x_BLD.dtype == torch.float64
    built.freeze()
    built.train()
    assert all(expert._projected is None and expert._aligned_VD is None for expert in built.experts)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"n_heads 5 does not divide model\.dim 32"):
        encoder(n_heads=5)


def test_gradients_are_the_same_bits_each_time_on_several_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, N_ITEMS + 1, (256, MAX_LEN), generator=generator).tolist()
    batch, found, n_threads = packed(collate(rows, MAX_LEN)), [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(4):
            built = encoder(k=20, refresh=0.5).train()
            torch.manual_seed(1)
            torch.autograd.backward(built(batch).x_BLD.square().sum())
            found.append([p.grad for p in built.parameters() if p.grad is not None])
    finally:
        torch.set_num_threads(n_threads)
    for again in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], again, strict=True))
