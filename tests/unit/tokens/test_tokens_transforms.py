"""Each transform against the same written plainly in float64."""

import numpy as np
import pytest
import torch

from lexrec.errors import TokensError
from lexrec.tokens import transforms
from lexrec.tokens.table import TokenTable
from tests.unit.tokens import _files

BF16 = 2**-8
"""Relative rounding of bf16."""


def table(weight_VW: torch.Tensor | None = None, tokens: list[str] | None = None) -> TokenTable:
    weight_VW = 3 * _files.weight(rows=200, width=16) + 1 if weight_VW is None else weight_VW
    return TokenTable(
        name="t",
        weight_VW=weight_VW.to(torch.bfloat16),
        tokens=tuple(_files.words(len(weight_VW)) if tokens is None else tokens),
        source="file:t",
        revision="1",
        sha256="ab",
        licence="MIT",
        tokenizer="{}",
    )


def exact(table: TokenTable) -> np.ndarray:
    return table.weight_VW.double().numpy()


def test_scaled_to_rms_one():
    old, new = table(), transforms.scaled(table())
    assert np.sqrt((exact(new) ** 2).mean()) == pytest.approx(1, abs=BF16)
    np.testing.assert_allclose(exact(new), exact(old) / np.sqrt((exact(old) ** 2).mean()), rtol=BF16)


def test_scaled_refuses_a_table_of_zeros():
    with pytest.raises(TokensError, match="token table t: every entry is zero"):
        transforms.scaled(table(torch.zeros(3, 2)))


def test_centred():
    old = table()
    expected = exact(old) - exact(old).mean(axis=0)
    np.testing.assert_allclose(exact(transforms.centred(old)), expected, rtol=BF16, atol=1e-5)


def test_row_normalised_and_a_zero_row_stays_zero():
    weight_VW = _files.weight(rows=5)
    weight_VW[2] = 0
    new = exact(transforms.row_normalised(table(weight_VW)))
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), [1, 1, 0, 1, 1], atol=BF16)


def test_first_keeps_rows_and_strings_and_drops_the_tokenizer():
    old = table()
    new = transforms.first(old, 7)
    assert torch.equal(new.weight_VW, old.weight_VW[:7])
    assert new.tokens == old.tokens[:7]
    assert new.tokenizer is None
    assert transforms.first(old, 10_000).n_tokens == old.n_tokens


def test_first_without_special_tokens():
    old = table(_files.weight(rows=5), ["<s>", "a", "[PAD]", "b", "c"])
    new = transforms.first(old, 2, drop_special=True)
    assert new.tokens == ("a", "b")
    assert torch.equal(new.weight_VW, old.weight_VW[[1, 3]])
    assert new.name == "t+first2-plain"


def test_first_refuses():
    with pytest.raises(TokensError, match="cannot keep the first 0 tokens; n is at least 1"):
        transforms.first(table(), 0)
    with pytest.raises(TokensError, match="has no token strings"):
        transforms.first(table(tokens=[]), 3, drop_special=True)
    with pytest.raises(TokensError, match="every token is special"):
        transforms.first(table(_files.weight(rows=2), ["<s>", "</s>"]), 3, drop_special=True)


def test_pca_against_the_singular_value_decomposition():
    old = table(_files.weight(rows=200, width=16) * torch.logspace(1, -2, 16))
    new = exact(transforms.pca(old, 4))
    centred = exact(old) - exact(old).mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(directions[np.arange(16), np.abs(directions).argmax(axis=1)])
    expected = centred @ (directions * signs[:, None])[:4].T
    np.testing.assert_allclose(new, expected, rtol=BF16, atol=0.01)
    np.testing.assert_allclose((new**2).sum(axis=0), values[:4] ** 2, rtol=0.01)


def test_pca_to_the_full_width_keeps_every_distance():
    old = table()
    new = exact(transforms.pca(old, 16))
    expected = np.linalg.norm(exact(old)[0] - exact(old)[1:], axis=1)
    np.testing.assert_allclose(np.linalg.norm(new[0] - new[1:], axis=1), expected, rtol=0.01)


@pytest.mark.parametrize("width", [0, 17])
def test_pca_refuses_a_width_the_table_does_not_have(width):
    with pytest.raises(TokensError, match=f"pca to width {width}; choose between 1 and its width 16"):
        transforms.pca(table(), width)


def test_blocks_of_rows_give_what_the_whole_gives(monkeypatch):
    whole = [transforms.scaled(table()), transforms.centred(table()), transforms.pca(table(), 3)]
    monkeypatch.setattr(transforms, "_BLOCK", 7 * 16)
    parts = [transforms.scaled(table()), transforms.centred(table()), transforms.pca(table(), 3)]
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one.weight_VW.float(), other.weight_VW.float(), rtol=BF16, atol=1e-3)


def test_the_given_table_is_untouched_and_provenance_is_kept():
    old = table()
    before = old.weight_VW.clone()
    new = transforms.pca(transforms.scaled(transforms.centred(old)), 4)
    assert torch.equal(old.weight_VW, before)
    assert new.name == "t+centred+scaled+pca4"
    assert new.source == "file:t | centred | scaled | pca4"
    assert (new.sha256, new.revision, new.licence, new.tokenizer) == ("ab", "1", "MIT", "{}")
    assert new.weight_VW.dtype == torch.bfloat16
