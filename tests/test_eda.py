"""harmaug.eda: variants that keep labels, case and digits; harmaug.diversity against its equations."""
import json
import math
from collections import Counter

import numpy as np
import pytest
from sklearn.decomposition import PCA
from test_augment import jaccard
from test_pipeline import write_bert

from harmaug import _C, Tokenizer, diversity, eda
from harmaug.data import DataError, Row

TABLE = {"quick": ["fast", "speedy"], "fox": ["vixen"], "jumps": ["leaps"], "lazy": ["idle"], "dog": ["hound"]}
TEXT = "The Quick brown fox jumps over 3 lazy dogs at 10pm, while the dog sleeps."
SEEDS = [Row(prompt=TEXT, label=1, category="x"), Row(prompt="Quick thinking helps every lazy dog.", response="yes", label=0)]


def words(text):
    return Counter(eda._WORD.findall(text))


def make(**settings):
    return eda.EdaAugmenter(eda.EdaConfig(**settings), synonyms=TABLE)


def test_variants_keep_label_response_and_are_functions_of_the_seed():
    first = list(make(per_row=8, alpha=0.3, seed=4).run(SEEDS))
    assert [row.to_dict() for row in make(per_row=8, alpha=0.3, seed=4).run(SEEDS)] == [row.to_dict() for row in first]
    assert [row.prompt for row in make(per_row=8, alpha=0.3, seed=5).run(SEEDS)] != [row.prompt for row in first]
    assert {(row.label, row.response, row.category) for row in first} == {(1, None, "x"), (0, "yes", None)}
    assert len({row.prompt for row in first}) == len(first) and not {row.prompt for row in first} & {row.prompt for row in SEEDS}
    assert all("3" in row.prompt and "10pm" in row.prompt for row in first if row.label)
    account = make(per_row=8, alpha=0.3)
    rows = list(account.run(SEEDS))
    counts = account.account_
    assert counts["asked"] == 16 == sum(counts[name] for name in ("unchanged", "duplicate", "blocked", "contaminated", "kept")) and counts["kept"] == len(rows)


@pytest.mark.parametrize("operation", eda._OPERATIONS)
@pytest.mark.parametrize("alpha, n", [(0.01, 1), (0.3, 4)])
def test_each_operation_changes_as_many_words_as_asked(operation, alpha, n):
    import random

    maker = make(alpha=alpha)
    for seed in range(50):
        got, had = words(maker.vary(TEXT, operation, random.Random(seed))), words(TEXT)
        added, gone = got - had, had - got
        if operation == "replace":
            assert sum(gone.values()) == n == sum(added.values()) and all(word.lower() in TABLE for word in gone)
            assert ("Quick" not in gone) or added["Fast"] or added["Speedy"]      # its case
        elif operation == "insert":
            assert not gone and sum(added.values()) == n and set(added) <= {word for others in TABLE.values() for word in others}
        elif operation == "delete":
            assert not added and sum(gone.values()) == n
        else:
            assert not added and not gone


@pytest.mark.parametrize("text", ["", "12 34", "one", "the of and", "\u00e9t\u00e9 na\u00efve"])
def test_texts_that_leave_nothing_to_change(text):
    import random

    for operation in eda._OPERATIONS:
        assert make().vary(text, operation, random.Random(0)).split() or not text.split()
    with pytest.raises(ValueError, match="operation must be one of replace, insert, swap, delete, got 'foo'"):
        make().vary(text, "foo", random.Random(0))


def test_filters():
    near = [Row(prompt=TEXT.replace("fox", "cat"))]
    maker = make(per_row=4)
    rows = list(maker.run(SEEDS[:1], near))
    assert maker.account_["contaminated"] + len(rows) <= 4 and all(jaccard(row.prompt, near[0].prompt) < 0.6 for row in rows)


def test_tables_and_wordnet(tmp_path):
    table = tmp_path / "t.json"
    table.write_text(json.dumps({"Bread": ["loaf"]}))
    assert eda.load_synonyms(table) == {"bread": ["loaf"]}
    table.write_text("[1]")
    with pytest.raises(DataError, match="t.json: must hold an object"):
        eda.load_synonyms(table)
    table.write_text('{"bread": "loaf"}')
    with pytest.raises(DataError, match="the synonyms of 'bread' must be a list of words"):
        eda.load_synonyms(table)
    with pytest.raises(DataError, match="no table of synonyms; install WordNet's files"):
        eda.load_synonyms(tmp_path / "nowhere")
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for kind in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{kind}").write_text("  1 licence\n")
    (folder / "data.noun").write_text("  1 licence\n00000001 03 n 03 car 0 auto 0 motor_car 0 001 @ 00 n 0000 | a\n00000002 03 n 02 car 0 railcar 0 000 | b\n"
                                      "00000003 03 n 02 Auto 0 car 0 000 | c\n")
    assert eda.load_synonyms(folder) == {"car": ["Auto", "auto", "railcar"], "auto": ["car"], "railcar": ["car"]}
    (folder / "data.verb").write_text("00000001 03 v xx\n")
    with pytest.raises(DataError, match="data.verb, line 1: not a synset of WordNet"):
        eda.load_synonyms(folder)


# -- diversity --


def bleu(text, references, order=4):
    """Papineni et al. 2002 with clipped counts, for one text."""
    def grams(t, n):
        return Counter(tuple(t[i:i + n]) for i in range(len(t) - n + 1))

    logs = []
    for n in range(1, order + 1):
        own = grams(text, n)
        best = Counter()
        for reference in references:
            best |= grams(reference, n)
        matched = sum((own & best).values())
        if n == 1 and not matched:
            return 0.0
        logs.append(math.log((matched or 0.1) / max(sum(own.values()), 1)))
    closest = min((len(r) for r in references), key=lambda x: (abs(x - len(text)), x))
    return min(1, math.exp(1 - closest / len(text))) * math.exp(sum(logs) / order)


def test_distinct_and_self_bleu_by_their_equations():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), rng.integers(1, 12))) for _ in range(40)]
    split = [text.split() for text in texts]
    pairs = [tuple(t[i:i + 2]) for t in split for i in range(len(t) - 1)]
    assert diversity.distinct(texts, 2) == len(set(pairs)) / len(pairs)
    want = np.mean([bleu(t, split[:i] + split[i + 1:]) for i, t in enumerate(split)])
    assert diversity.self_bleu(texts) == pytest.approx(want, rel=1e-12)
    assert diversity.self_bleu(["same words here now"] * 3) == 1.0 and diversity.self_bleu(["a b", "c d"]) == 0.0
    assert diversity.self_bleu(["alone"]) is None and diversity.distinct([], 1) is None and diversity.distinct(["one"], 2) is None
    assert diversity.self_bleu(texts, sample=10, seed=1) == diversity.self_bleu(texts, sample=10, seed=1)


def test_embeddings_are_the_heads_input(tmp_path):
    """Against logits of the same encoder under a head of one's own: the identity before the classes, any classes."""
    folder = write_bert(tmp_path / "bert")
    texts = ["a list of words", "other words", "a list of words"]
    found = diversity.embed(texts, folder)
    params = _C.EncoderParams.read(folder, new_head=3, seed=1)
    size = params.config["hidden_size"]
    params.set("bert.pooler.dense.weight", np.eye(size))
    params.set("bert.pooler.dense.bias", np.zeros(size))
    rows = Tokenizer.from_pretrained(folder).encode_batch(texts)
    logits = _C.Encoder.from_params(params).logits(rows.ids, rows.offsets)
    np.testing.assert_allclose(found @ params.get("classifier.weight").T + params.get("classifier.bias"), logits, atol=1e-5)
    assert np.array_equal(found[0], found[2]) and found.shape == (3, size) and np.abs(found).max() <= 1


def test_clusters_and_their_map(tmp_path, monkeypatch):
    texts = [text for i in range(8) for text in (f"how do I bake a bread of kind {i}", f"zq {i} 77 99 1234")] + ["x"]
    rng = np.random.default_rng(0)
    made = np.array([[1.0, 0, 0] if text.startswith("how") else [0, 1.0, 0] if text != "x" else [0, 0, 1.0] for text in texts]) + 0.01 * rng.random((17, 3))
    monkeypatch.setattr(diversity, "embed", lambda some, encoder: made[:len(some)])
    about, shown = diversity.clusters(texts)
    assert about == {"clusters": 2, "noise": round(1 / 17, 4), "clusters_of": 17, "clusters_by": "minilm"} and shown["cluster"][-1] == -1
    centred = (made / np.linalg.norm(made, axis=1, keepdims=True)) - (made / np.linalg.norm(made, axis=1, keepdims=True)).mean(0)
    pca = PCA(2).fit(centred)
    np.testing.assert_allclose(np.abs(np.transpose([shown["x"], shown["y"]])), np.abs(pca.transform(centred)), atol=1e-4)
    np.testing.assert_allclose(shown["share"], pca.explained_variance_ratio_, atol=1e-4)
    assert diversity.clusters(texts) == (about, shown) and diversity.clusters(["a"])[0]["clusters_note"] == "fewer than three texts"
    monkeypatch.undo()
    assert "clusters_note" in diversity.clusters(texts, tmp_path / "none")[0]
    for few in ([[1.0, 2, 3]], np.zeros((0, 3)), [[1.0], [2.0]], [[1, np.nan], [1, 2]]):
        with pytest.raises(ValueError, match=r"plane: embeddings must be finite numbers of at least two rows and columns, got shape \("):
            diversity.plane(few)


def test_neighbours_clusters_and_summary():
    texts = ["how do I bake bread", "how do I bake breads", "entirely other words"]
    assert diversity.nearest(texts, texts[:1]) == pytest.approx([jaccard(text, texts[0]) for text in texts])
    assert diversity.nearest(texts, []).tolist() == [0, 0, 0]
    vectors = np.repeat(np.eye(3), 6, axis=0) + 0.01
    found = diversity.cluster(vectors)
    assert len(set(found.tolist())) == 3 and -1 not in found
    about = diversity.summary(texts, texts[:1], [])
    assert about["nearest_held_out"] is None and 0 < about["nearest_seed"] < 1 and about["distinct_1"] == round(9 / 13, 4)
