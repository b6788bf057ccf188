"""Items that came after training: rows from their texts, lists that show them, and how good they are."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import lexrec
from lexrec.commands.__main__ import main
from lexrec.data.dataset import TEST, Dataset
from lexrec.data.held_items import hold_out_items
from lexrec.data.items import ItemTable
from lexrec.data.prepare import prepare
from lexrec.errors import ConfigError, DataError
from lexrec.evaluation.evaluate import EvaluationConfig
from lexrec.evaluation.new_items import evaluate_new_items
from lexrec.lm.prompt import Prompt
from lexrec.lm.row_map import predict_rows, text_features
from lexrec.run_dir import RunDir
from lexrec.tokens.stored import write_folder
from lexrec.tokens.table import TokenTable
from lexrec.training.train import train
from tests.language_models import folder

N, KINDS = 60, ["red soap", "blue brush", "green nail polish"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 users who each take items of one kind alone, which the title names."""
    draw = np.random.default_rng(0)
    rows = [
        (f"u{user}", int(item), t)
        for user in range(90)
        for t, item in enumerate(user % 3 + 3 * draw.choice(N // 3, 7, replace=False))
    ]
    users, items, times = zip(*rows, strict=True)
    events = pa.table({"user_id": users, "item_id": items, "time": times})
    table = pa.table({"item_id": range(N), "title": [f"{KINDS[i % 3]} t{i % 7}" for i in range(N)]})
    out = tmp_path_factory.mktemp("shop")
    prepare(events, time="time", out=out / "all", items=ItemTable(table, title="title"))
    hold_out_items(Dataset.load(out / "all"), 0.3).save(out / "held")
    return out / "held"


@pytest.fixture(scope="module")
def ids(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    options = ["model.max_len=6", "model.dropout=0", "train.max_epochs=15", "train.warmup_steps=0"]
    options += [
        "train.batch_size=30",
        "train.lr=1e-2",
        "train.evaluate_every=15",
        "model.train_attention=true",
    ]
    out = tmp_path_factory.mktemp("runs") / "ids"
    return train(
        "idiomoe", data=data, out=out, overrides=[f"lm.model={folder()}", *options], track=(), device="cpu"
    )


def test_held_out_items_have_test_events_alone(data: Path) -> None:
    held, whole = Dataset.load(data), Dataset.load(data.with_name("all"))
    is_held_I = held.train_count_I == 0
    is_held_I[[0, -1]] = False
    assert 15 <= is_held_I.sum() <= 20
    assert held.fingerprint != whole.fingerprint
    assert held.manifest["held_out_items"] == {"share": 0.3, "seed": 0, "items": 18}
    for user in range(whole.n_users):
        rows = []
        for dataset in (whole, held):
            first, last = dataset.offset_U[user : user + 2]
            rows.append(list(zip(dataset.item_N[first:last], dataset.split_N[first:last], strict=True)))
        assert rows[1] == [
            (i, s) for i, s in rows[0] if s == TEST or held.train_count_I[i] or not is_held_I[i]
        ]
    with pytest.raises(DataError, match=r"share is above 0 and below 1, got 1"):
        hold_out_items(whole, 1)


def test_features_are_means_over_distinct_tokens_weighted_by_rarity() -> None:
    table_VW = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    prompt = Prompt(
        torch.tensor([[0, 0, 0], [1, 2, 1], [1, 3, 0], [1, 0, 0], [0, 0, 0]]), torch.tensor([0, 3, 2, 1, 0])
    )
    x_IW = text_features(prompt, table_VW)
    common, rare = np.log(3 / 3) + 0.1, np.log(3 / 1) + 0.1
    expected = (common * table_VW[1] + rare * table_VW[2]) / (common + rare)
    torch.testing.assert_close(x_IW[1], expected.float())
    torch.testing.assert_close(x_IW[3], table_VW[1])
    assert not x_IW[[0, 4]].any()


def test_a_linear_map_is_found_and_noise_explains_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    x_IW, map_WD = torch.randn(300, 8, generator=draw), torch.randn(8, 5, generator=draw)
    row_ID, known_N = x_IW @ map_WD + 3, torch.arange(1, 250)
    count_N = torch.full((249,), 20)
    found = predict_rows(x_IW, row_ID[known_N], known_N, count_N)
    assert found.r2 > 0.99
    torch.testing.assert_close(found.row_ID[250:], row_ID[250:], atol=0.1, rtol=0.05)
    noise = predict_rows(x_IW, torch.randn(249, 5, generator=draw), known_N, count_N)
    assert noise.r2 < 0.1


def test_rows_from_texts_rank_items_that_were_never_trained(ids: RunDir, data: Path) -> None:
    found = evaluate_new_items(ids.scorer(), Dataset.load(data), EvaluationConfig(k=(5,)))
    hr = {name: values["new"]["hr@5"] for name, values in found.ways.items()}
    assert found.r2 > 0.1
    assert hr["rows from texts"] > 2 * hr["random"]
    assert hr["similar texts"] > 1.5 * hr["random"]
    assert hr["rows as they started"] < hr["rows from texts"]
    assert hr["random"] == hr["popularity"] == pytest.approx(5 / found.n_new)
    assert found.ways["popularity"]["all"]["hr@5"] == 0
    assert found.ways["random"]["all"]["hr@5"] == pytest.approx(5 / N)
    with pytest.raises(DataError, match=r"no test event has an item without a training event; hold some out"):
        evaluate_new_items(ids.scorer(), Dataset.load(data.with_name("all")), EvaluationConfig())


def test_a_recommender_shows_new_items_and_passes_them_over_in_histories(ids: RunDir, tmp_path: Path) -> None:
    plain = lexrec.Recommender.load(ids.path)
    new = pa.table(
        {"item_id": [100, 101, 102], "title": [f"{kind} t5" for kind in KINDS], "price": [1, 2, 3]}
    )
    both = plain.with_new_items(new)
    history = [0, 6]  # red soap
    full = both.recommend([history], N + 3, keep_seen=True)
    assert set(full.item_ids[0]) == set(range(N)) | {100, 101, 102}
    known = [(i, s) for i, s in zip(full.item_ids[0], full.scores[0], strict=True) if i < 100]
    before = plain.recommend([history], N, keep_seen=True)
    assert [i for i, _ in known] == before.item_ids[0]
    assert [s for _, s in known] == pytest.approx(before.scores[0], abs=1e-5)
    assert next(i for i in full.item_ids[0] if i >= 100) == 100
    assert both.titles([101, 3]) == ["blue brush t5", "red soap t3"]
    passed_over = both.recommend([[0, 102, 6]], 5, allow=[100, 101, 3])
    assert passed_over.scores == both.recommend([[0, 6]], 5, allow=[100, 101, 3]).scores
    assert passed_over.unknown == [[]]


def test_the_verbs_take_a_file_of_new_items(
    ids: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new.parquet"
    pq.write_table(pa.table({"item_id": [100, 101], "title": ["red soap t5", "blue brush t5"]}), file)
    words = ["recommend", str(ids.path), "--history", "0,6", "--new-items", str(file)]
    assert main([*words, "-k", "2", "--allow", "100,101", "--json"]) == 0
    assert [item["item_id"] for item in json.loads(capsys.readouterr().out)["items"]] == [100, 101]
    assert main(["evaluate", str(ids.path), "--new-items", "--k", "5"]) == 0
    out = capsys.readouterr().out
    assert "items without a training event" in out
    assert "rows from texts" in out
    assert main(["evaluate", str(ids.path), "--new-items", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["ways"]) >= {"random", "popularity", "similar texts"}
    assert json.loads((ids.path / "evaluations" / "test-new-items.json").read_text()) == found


def test_bad_tables_of_new_items_are_refused(ids: RunDir, data: Path, tmp_path: Path) -> None:
    plain = lexrec.Recommender.load(ids.path)
    for table, why in (
        (pa.table({"item_id": [100]}), r"both need item_id and title"),
        (pa.table({"item_id": [3], "title": ["soap"]}), r"new items: 3 is an item of .* already"),
        (pa.table({"item_id": [100, 100], "title": ["a", "b"]}), r"item_id 100 is there twice or missing"),
        (pa.table({"item_id": ["x"], "title": ["a"]}), r"new items are of another type than the run's"),
    ):
        with pytest.raises(DataError, match=why):
            plain.with_new_items(table)
    with pytest.raises(DataError, match=r"cannot read .*none.parquet as Parquet"):
        plain.with_new_items(tmp_path / "none.parquet")
    popular = train("popularity", data=data, out=tmp_path / "popular", track=())
    with pytest.raises(ConfigError, match=r"predicted for a trained model, not for a baseline"):
        lexrec.Recommender.load(popular.path).with_new_items(tmp_path)


def test_text_tokens_makes_the_rows_of_new_items_itself(data: Path, tmp_path: Path) -> None:
    words = sorted({word for kind in KINDS for word in kind.split()} | {f"t{i}" for i in range(7)})
    weight_VW = torch.randn(len(words), 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    table = TokenTable(
        "made", weight_VW, tuple(f"\u2581{word}" for word in words), "made", "", "0" * 64, "none"
    )
    options = ["model.dim=8", "model.n_heads=1", "item_encoder.columns=[title]", "train.max_epochs=1"]
    options += [f"item_encoder.tables=['file:{write_folder(table, tmp_path)}']", "item_encoder.use_id=false"]
    run = train("sasrec_text", data=data, out=tmp_path / "run", overrides=options, track=(), device="cpu")
    new = pa.table({"item_id": [100], "title": ["red soap t0"]})  # as item 0 is called
    both = lexrec.Recommender.load(run.path).with_new_items(new)
    found = both.recommend([[3, 6]], 2, keep_seen=True, allow=[0, 100])
    assert found.scores[0][0] == pytest.approx(found.scores[0][1], abs=1e-4)
    plain = train("sasrec", data=data, out=tmp_path / "plain", overrides=["train.max_epochs=1"], track=())
    with pytest.raises(
        ConfigError, match=r"reads no text, so it has no row for an item without events; use a"
    ):
        lexrec.Recommender.load(plain.path).with_new_items(new)
