"""From folders of `lexrec compare` to lines and tables."""

import json

from benchmarks import collect


def run_folder(folder, seed, hit_rate, **summary):
    run = folder / (f"seed-{seed}" if seed else "counted")
    (run / "evaluations" / "test").mkdir(parents=True)
    metrics = dict.fromkeys(collect.KEPT, 0.5) | {"hr@10": hit_rate, "hr@5": 0.1}
    (run / "evaluations" / "test" / "metrics.json").write_text(json.dumps({"metrics": metrics}))
    if seed:
        selected = summary or {"ndcg@10": 0.25}
        (run / "DONE").write_text(json.dumps({"best_epoch": 3, "seconds": 7.5, **selected}))
    return run


def comparison(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    arms = {
        "plain": ["sasrec", "item_encoder.tables=[file:/opt/w/t/minilm,wordllama]"],
        "pop": ["popularity"],
        "paper": ["sasrec_paper"],
        "blind": ["sasrec"],
    }
    (folder / "compare.json").write_text(json.dumps({"settings": {"metric": "ndcg@10"}, "arms": arms}))
    run_folder(folder / "arms" / "plain", 1, 0.125)
    run_folder(folder / "arms" / "plain", 2, 0.135)
    run_folder(folder / "arms" / "pop", 0, 0.01)
    run_folder(folder / "arms" / "paper", 1, 0.2, **{"ndcg@20": 0.3})
    run_folder(folder / "arms" / "blind", 1, 0.2, **{"ndcg@10": None})
    # Measured under other rules beside the comparison's: its own count.
    other = folder / "arms" / "pop" / "counted" / "evaluations" / "test-candidates-train"
    other.mkdir()
    (other / "metrics.json").write_text(json.dumps({"metrics": dict.fromkeys(collect.KEPT, 0.9)}))
    # A run that was stopped has a folder and no result.
    (folder / "arms" / "plain" / "seed-3").mkdir()
    return folder


def test_every_finished_run_is_a_line(tmp_path):
    card, *lines = collect.collected(comparison(tmp_path))
    assert card["settings"] == {"metric": "ndcg@10"}
    assert card["arms"]["plain"] == ["sasrec", "item_encoder.tables=[minilm,wordllama]"]
    assert [(line["arm"], line.get("seed")) for line in lines] == [
        ("plain", 1), ("plain", 2), ("pop", None), ("paper", 1), ("blind", 1),
    ]  # fmt: skip
    assert lines[2]["metrics"]["hr@10"] == 0.01
    assert lines[0]["recipe"] == "sasrec item_encoder.tables=[minilm,wordllama]"
    assert lines[1]["metrics"] == {"hr@10": 0.135, "ndcg@10": 0.5, "hr@20": 0.5, "ndcg@20": 0.5}
    assert lines[1]["selected ndcg@10"] == 0.25


def test_tables_of_a_page_are_renewed_and_the_rest_stays(tmp_path, monkeypatch, capsys):
    out = tmp_path / "plain.jsonl"
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- runs plain hr@10 -->\n| stale |\n<!-- end -->\nafter\n")
    monkeypatch.setattr(collect, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["collect", str(comparison(tmp_path)), str(out)])
    collect.main()
    assert capsys.readouterr().out.startswith("5 runs of ")
    monkeypatch.setattr("sys.argv", ["collect", "--fill", str(page)])
    collect.main()
    before, mark, head, rule, plain, pop, paper, blind, end, after = page.read_text().splitlines()
    assert (before, after) == ("before", "after")
    assert (mark, end) == ("<!-- runs plain hr@10 -->", "<!-- end -->")
    assert head.startswith("| arm | recipe | seeds | HR@10 |")
    assert set(rule) == {"|", " ", "-"}
    assert plain.split(" | ")[2:5] == ["2", ".1300 ± .0071", "ndcg@10 .2500 ± .0000"]
    assert pop.split(" | ")[3] == ".0100"
    assert paper.split(" | ")[4] == "ndcg@20 .3000", "an arm's own metric, whatever the comparison tests"
    assert blind.split(" | ")[4] == "", "nothing picked its epochs"
