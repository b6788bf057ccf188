"""What MLTFR adds to item vectors, and by which option."""

import math
from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lexrec.config import run_config
from lexrec.data.batch import Batch, collate
from lexrec.errors import ConfigError
from lexrec.item_encoders import _expert
from lexrec.item_encoders._attention import Answers, CrossAttention
from lexrec.item_encoders._interest import anchor_lengths, prefix_means
from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.item_encoders.base import Catalogue
from lexrec.item_encoders.mltfr import Mltfr
from lexrec.kernels import token_filter
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
    (query_N1D, _, unit, _), chosen = seen[0]
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


@pytest.mark.parametrize(("filter_", "n_made"), [("frozen", 1), ("learned", 3)])
def test_a_frozen_filter_aligns_its_table_once(filter_: str, n_made: int) -> None:
    built, made = encoder(filter=filter_).train(), []
    built.experts[0].align.register_forward_hook(lambda module, given, out: made.append(len(out)))
    for _ in range(3):
        built(ragged()).x_BLD.sum().backward()
    # A filter that learns aligns the rows it chose once more where those are fewer.
    assert [n for n in made if n == 40] == [40] * n_made


def test_a_frozen_filter_weighs_rows_as_its_estimator_does() -> None:
    options = {"estimator": "release", "cap": None}
    learned, frozen = encoder(**options), encoder(filter="frozen", **options)
    assert_close(added(frozen, ragged()), added(learned, ragged()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"refresh": 0.5},
        {"interest": "sequence"},
        {"interest": "sequence", "k": 30},
        {"filter": "frozen"},
        {"bias": False, "learn_scale": False, "cap": None},
    ],
)
def test_reading_a_table_once_gives_the_same_numbers(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, in plain arithmetic: one product for alignment, keys and values."""
    found = []
    for once in (False, True):
        monkeypatch.setattr(_expert, "is_on_gpu", lambda x, once=once: once)
        built = encoder(dropout=0.0, **options)
        batch = packed(ragged())
        x_BLD = built(batch).x_BLD
        pull_BLD = torch.randn(x_BLD.shape, generator=torch.Generator().manual_seed(0))
        (x_BLD * pull_BLD).sum().backward()
        built.freeze()
        with torch.no_grad():
            assert_close(built(batch).x_BLD, x_BLD)
        found.append((x_BLD.detach(), {name: p.grad for name, p in built.named_parameters()}))
    (x_BLD, grads), (once_BLD, grads_once) = found
    assert_close(once_BLD, x_BLD)
    assert grads.keys() == grads_once.keys()
    for name, grad in grads.items():
        assert_close(grads_once[name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("n_queries", [1, 7])
def test_attention_gives_the_same_without_its_weights(n_queries: int, biased: bool, device: str) -> None:
    torch.manual_seed(0)
    attention = CrossAttention(24, 32, MltfrConfig(dropout=0.0)).to(device)
    given = [torch.randn(5, n, 32, device=device, requires_grad=True) for n in (n_queries, 11, 11)]
    bias_UK = torch.randn(5, 11, device=device, requires_grad=True)
    leaves = [*given, *([bias_UK] if biased else []), attention.query.weight, attention.out.weight]
    answers = Answers(given[1], given[2], bias_UK if biased else None)
    plain_UQD, fused_UQD = attention(given[0], answers)[0], attention._fused(given[0], answers)
    assert_close(fused_UQD, plain_UQD)
    for ours, theirs in zip(
        *(torch.autograd.grad(x.square().sum(), leaves) for x in (fused_UQD, plain_UQD)), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"interest": "sequence", "k": 30}, {"refresh": 0.5}])
def test_a_gpu_takes_the_step_of_a_cpu(options: dict[str, object]) -> None:
    """Time after time: streams that read what was not made yet, or no longer is there, would show."""
    on_cpu, on_gpu = (encoder(dropout=0.0, dim=64, **options) for _ in range(2))
    on_gpu = on_gpu.cuda()
    rows = torch.randint(1, N_ITEMS + 1, (100, 30), generator=torch.Generator().manual_seed(0)).tolist()
    batch = packed(collate(rows, 30))
    pull_BLD = torch.randn(100, 30, 64, generator=torch.Generator().manual_seed(0))
    x_BLD = on_cpu(batch).x_BLD
    (x_BLD * pull_BLD).sum().backward()
    for _ in range(5):
        on_gpu.zero_grad(set_to_none=True)
        found_BLD = on_gpu(batch.to("cuda")).x_BLD
        (found_BLD * pull_BLD.cuda()).sum().backward()
        assert_close(found_BLD.cpu(), x_BLD, rtol=1e-4, atol=1e-4)
        for (name, ours), theirs in zip(on_gpu.named_parameters(), on_cpu.parameters(), strict=True):
            assert ours.grad is not None, name
            assert theirs.grad is not None, name
            assert (ours.grad.cpu() - theirs.grad).norm() <= 1e-3 * theirs.grad.norm() + 1e-3, name


class Shapes(TorchDispatchMode):
    """Keeps the shape of every tensor that is made, views of overlapping rows apart."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, lambda t: t.is_contiguous() and self.made.add(tuple(t.shape)), out)
        return out


@pytest.mark.parametrize("estimator", ["log_bias", "paper"])
def test_no_tensor_is_queries_by_vocabulary(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_filter, "_CHUNK_CELLS", 3 * 70)
    built, batch = encoder(estimator=estimator).train(), ragged([[1, 2, 3, 4, 5, 6, 7, 8]] * 6)
    with Shapes() as seen:
        built(batch).x_BLD.sum().backward()
    assert (3, 70) in seen.made
    assert not [s for s in seen.made if s[-1:] in {(40,), (70,)} and math.prod(s[:-1]) > components.DIM]


@pytest.mark.gpu
@pytest.mark.parametrize("interest", ["prefix", "sequence"])
def test_on_a_gpu_a_step_holds_no_scores(interest: str) -> None:
    """6400 queries of 32,000 tokens are 820 MB of scores, and as much again for the noise."""
    torch.manual_seed(0)
    config = MltfrConfig(tables=("a",), k=64, interest=interest)
    built = Mltfr(config, Catalogue(500, 64, (components.table("a", 32000, 256),))).cuda().train()
    batch = collate(torch.randint(1, 501, (128, 50)).tolist(), 50).to("cuda")
    peaks = []
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            loss = built(batch).x_BLD.float().square().sum()
        loss.backward()
        built.zero_grad(set_to_none=True)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[-1] < 250 * 2**20


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


def test_between_anchors_there_are_no_more_choices_than_the_shape_allows() -> None:
    """Rows of 8 have four anchors under refresh 1, whatever they hold: no device is asked for a number."""
    built, seen = encoder(refresh=1.0), []
    handle = built.experts[0].register_forward_hook(lambda module, given, out: seen.append(given[1]))
    full = ragged([[1] * MAX_LEN] * 6)
    spare = packed(full, spare=0)
    added(built, spare)
    added(built, full)
    added(built, packed(ragged([[1, 2]] * 6), spare=20))
    handle.remove()
    assert [len(interest_MD) for interest_MD in seen] == [24, 24, 24]


def test_a_row_longer_than_anchors_are_known_for_is_refused() -> None:
    built = encoder(refresh=1.0)
    with pytest.raises(ConfigError, match=r"at most 8192 items, got 8193; set item_encoder\.refresh=0"):
        built(collate([[1, 2]], 8193))


def test_another_encoder_can_be_enriched() -> None:
    """The inner encoder gets the tables behind ours, and what it makes is asked with and scored against."""
    torch.manual_seed(0)
    a, b = components.tables()
    inner = {"name": "text_tokens", "tables": ("b",)}
    config = MltfrConfig(tables=("a",), k=5, items=inner)
    assert config.table_names == ("a", "b")
    built = Mltfr(config, Catalogue(N_ITEMS, components.DIM, (a, b), components.item_table())).eval()
    alone = type(built.items)(
        built.items.config, Catalogue(N_ITEMS, components.DIM, (b,), components.item_table())
    )
    assert [name for name, _ in built.items.named_parameters()] == [
        name for name, _ in alone.named_parameters()
    ]
    batch = ragged()
    plain_BLD = built.items(batch).x_BLD
    assert torch.equal(built.scoring().rows(1, N_ITEMS + 1), built.items.scoring().rows(1, N_ITEMS + 1))
    assert torch.equal(built.lookup(batch.item_BL), built.items.lookup(batch.item_BL))
    length_BL = (built(batch).x_BLD - plain_BLD).norm(dim=-1)[batch.is_item_BL]
    assert (length_BL > 0).all()
    assert (length_BL <= 0.3 * plain_BLD.norm(dim=-1)[batch.is_item_BL] + 1e-6).all()
    assert [view.table for view in built.inspect(batch)] == ["a+scaled"]


def test_mltfr_may_enrich_mltfr() -> None:
    torch.manual_seed(0)
    a, b = components.tables()
    inner = {"name": "mltfr", "tables": ("b",), "interest": "sequence", "k": 4, "inject": "after_block0"}
    config = MltfrConfig(tables=("a",), k=5, items=inner, inject="after_block0")
    built = Mltfr(config, Catalogue(N_ITEMS, components.DIM, (a, b))).eval()
    assert not built.causal
    assert [view.table for view in built.inspect(ragged())] == ["a+scaled", "b+scaled"]
    both_BLD, inner_BLD = built(ragged()).after_block0_BLD, built.items(ragged()).after_block0_BLD
    assert both_BLD is not None
    assert inner_BLD is not None
    assert not torch.allclose(both_BLD, inner_BLD)


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ({"tables": ["a"]}, "a section is a mapping with a `name`"),
        ({"name": "id_embedding", "width": 3}, "items: unknown key 'width'; known: name, tables"),
    ],
)
def test_an_inner_encoder_that_is_wrong_is_named(items: object, complaint: str) -> None:
    tree = {"model": {"name": "sasrec"}, "objective": {"name": "next_item"}}
    with pytest.raises(ConfigError, match=complaint):
        run_config({**tree, "item_encoder": {"name": "mltfr", "items": items}})


def test_pca_makes_tables_equally_wide() -> None:
    built = encoder(pca=6)
    assert [tuple(expert.table_VW.shape) for expert in built.experts] == [(40, 6), (70, 6)]
    variance_W = built.experts[0].table_VW.float().var(dim=0)
    assert (variance_W.diff() <= 1e-4).all()
    noise = encoder(pca=6, random_seed=1)
    assert [tuple(expert.table_VW.shape) for expert in noise.experts] == [(40, 6), (70, 6)]
    assert not torch.equal(noise.experts[0].table_VW, built.experts[0].table_VW)
    assert torch.equal(encoder(pca=6).experts[0].table_VW, built.experts[0].table_VW)


def weights(expert: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for _, parameter in sorted(expert.named_parameters())]


@pytest.mark.parametrize(("init", "alike"), [("shared", True), ("independent", False), ("torch", False)])
def test_experts_of_one_width_start_alike_if_asked(init: str, alike: bool) -> None:
    built = encoder(pca=6, init=init)
    first, second = (weights(expert) for expert in built.experts)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True)) == alike
    is_zero = (built.experts[0].attention.out.bias == 0).all()
    assert bool(is_zero) == (init != "torch")


def test_a_scale_that_is_not_learnt_stays_the_papers() -> None:
    built = encoder(learn_scale=False, logit_scale=1.0).train()
    built(ragged()).x_BLD.square().sum().backward()
    assert built.experts[0].logit_scale.grad is None
    assert built.experts[0].align.weight.grad is not None


def test_without_a_language_model_the_number_of_parameters_stays() -> None:
    """And every user is given the same k vectors, whatever the history."""
    real, control = (encoder(source=source) for source in ("tables", "constant"))
    sizes = [
        {name: p.shape for name, p in built.named_parameters() if p.requires_grad}
        for built in (real, control)
    ]
    assert sizes[0] == sizes[1]
    views = control.inspect(ragged([[3, 1, 4], [5], [8, 9]]))
    for view in views:
        assert {tuple(sorted(row)) for row in view.token_BK.tolist()} == {(0, 1, 2, 3, 4)}
    assert not torch.equal(real.experts[0].table_VW[:5], control.experts[0].table_VW)


def test_inspect_shows_a_pooled_batch_its_shared_tokens() -> None:
    built = encoder(pool="batch", interest="sequence")
    rows = [[3, 1, 4], [5], [8, 9]]
    for view in built.inspect(ragged(rows)):
        assert view.token_BK.shape == view.weight_BK.shape == (3, 15)
        assert (view.token_BK == view.token_BK[0]).all()
        assert_close(view.weight_BK.sum(1), torch.ones(3))


@pytest.mark.parametrize("estimator", ["log_bias", "paper", "release"])
def test_without_biases_is_as_with_biases_of_zero(estimator: str) -> None:
    options = {"estimator": estimator, "cap": None}
    bare, zero = encoder(bias=False, **options), encoder(**options)
    assert not [name for name, _ in bare.experts[0].attention.named_parameters() if "bias" in name]
    zero.load_state_dict(bare.state_dict(), strict=False)
    assert_close(added(bare, ragged()), added(zero, ragged()))
