"""Guard: scores, long rows, inputs, labels, saving, LoRA adapters."""
import io
import json
import math
import warnings

import bert_model
import encoder_models
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import BertWordPieceTokenizer

from harmaug import _C, FormatError
from harmaug.guard import Guard
from harmaug.score import score_stream
from harmaug.server import create_app

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), ".", ",", "?"]
PROMPTS = ["a b c", "", "hello there, who are you?", "z" * 20, "one. two. three."]
RESPONSES = [None, "d e f", "", "no", "a longer answer than that"]


def write(folder, seed=0, **changes):
    c = bert_model.config(vocab_size=60, max_position_embeddings=40, **changes)
    if "id2label" in changes:
        del c["num_labels"]
    bert_model.write(folder, c, bert_model.weights({**c, "num_labels": len(changes.get("id2label", [0] * c.get("num_labels", 2)))}, seed))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "guard")


@pytest.fixture
def oracle(folder):
    return BertWordPieceTokenizer(str(folder / "vocab.txt"))


def logits_of(folder, encodings):
    """Logits of each of a list of tokenizers' encodings, one by one."""
    encoder = _C.Encoder(folder)
    return np.concatenate([encoder.logits(e.ids, [0, len(e.ids)], e.type_ids) for e in encodings])


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)


# -- scores --

def test_scores_of_prompts_and_pairs(folder, oracle):
    guard = Guard.from_pretrained(folder)
    want = logits_of(folder, [oracle.encode(p, r or None) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    np.testing.assert_array_equal(guard.logits(PROMPTS, RESPONSES), want)
    np.testing.assert_array_equal(guard.score(PROMPTS, RESPONSES), softmax(want)[:, 1])
    np.testing.assert_allclose(guard.predict_proba(PROMPTS, RESPONSES), softmax(want), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(guard.predict(PROMPTS, RESPONSES), (softmax(want)[:, 1] >= 0.5).astype(int))
    np.testing.assert_array_equal(guard.score(PROMPTS), guard.score(PROMPTS, [None] * 5))
    np.testing.assert_array_equal(guard.score(PROMPTS), guard.score(PROMPTS, [""] * 5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_do_not_depend_on_the_batch(isa, folder, dtype):
    guard = Guard.from_pretrained(folder, dtype=dtype)
    rng = np.random.default_rng(0)
    prompts = ["".join(rng.choice(list("abc ,?"), n)) for n in rng.integers(0, 120, 700)]      # two blocks; some are long
    want = guard.score(prompts)
    assert guard.score_details(prompts).n_windows.max() > 1
    np.testing.assert_array_equal(Guard.from_pretrained(folder, dtype=dtype, n_threads=1).score(prompts), want)
    np.testing.assert_array_equal(np.concatenate([guard.score([p]) for p in prompts[:40]]), want[:40])
    np.testing.assert_array_equal(guard.score(prompts[::-1]), want[::-1])


def test_forms_of_input(folder):
    guard = Guard.from_pretrained(folder)
    want = guard.score(["a b", "c"], ["d", None])
    assert want.dtype == np.float32 and want.shape == (2,)
    for prompts, responses in [(("a b", "c"), ("d", "")), (np.array(["a b", "c"]), np.array(["d", ""])), (iter(["a b", "c"]), iter(["d", None])),
                               (np.array(["a b", "c"], dtype=object), np.array(["d", np.nan], dtype=object)),
                               ([[{"role": "user", "content": "a b"}, {"role": "assistant", "content": "d"}], "c"], None)]:
        np.testing.assert_array_equal(guard.score(prompts, responses), want)
    np.testing.assert_array_equal(guard.score("a b", "d"), want[:1])
    np.testing.assert_array_equal(guard.score([{"role": "user", "content": "a b"}, {"role": "assistant", "content": "d"}]), want[:1])
    many = [{"role": "system", "content": "x"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    np.testing.assert_array_equal(guard.score([many]), guard.score(["x\na\nb\nc"]))
    assert guard.score([]).shape == (0,) and guard.logits([]).shape == (0, 2) and guard.predict([]).shape == (0,)
    assert guard.predict_proba([]).shape == (0, 2)


@pytest.mark.parametrize("prompts, responses, error, match", [
    (["a", "b"], ["c"], ValueError, "2 prompts but 1 responses"),
    (["a", 3], None, TypeError, "row 1: the prompt must be a str or a list of messages, got int"),
    (["a", None], None, TypeError, "row 1: the prompt must be a str .* got NoneType"),
    ([b"a"], None, TypeError, "row 0: the prompt .* got bytes"),
    (["a", "b"], ["c", 4], TypeError, "row 1: the response must be a str or None, got int"),
    (["a", "x\ud800"], None, ValueError, "row 1: "),
    (["a"] * 600 + ["x\ud800"], None, ValueError, "row 600: "),
    ([[{"role": "user"}]], None, TypeError, "row 0: a message needs a role and a content"),
    ([[{"role": "user", "content": "a"}]], ["b"], ValueError, "row 0: a conversation carries its own response"),
    ([[]], None, TypeError, "row 0"),
])
def test_rejects_input(folder, prompts, responses, error, match):
    with pytest.raises(error, match=match):
        Guard.from_pretrained(folder).score(prompts, responses)


def test_rejects_one_message(folder):
    with pytest.raises(TypeError, match="got one mapping"):
        Guard.from_pretrained(folder).score({"role": "user", "content": "a"})


def test_rejects_scores_that_are_no_number(folder):
    w = load_file(str(folder / "model.safetensors"))
    w["bert.embeddings.word_embeddings.weight"][6] = np.nan      # the token "b"
    save_file(w, str(folder / "model.safetensors"))
    guard = Guard.from_pretrained(folder)
    assert guard.score(["a"] * 600).shape == (600,)
    with pytest.raises(ValueError, match="row 600: .*guard gives a score that is no finite number"):
        guard.score(["a"] * 600 + ["b"])


# -- long rows --

def windows_of(oracle, prompt, response=None, *, max_length=40):
    """Every window as the rule says, cut by tokenizers."""
    if response is None:
        oracle.enable_truncation(max_length, stride=max_length // 4)
        whole = oracle.encode(prompt)
        return [whole, *whole.overflowing]
    oracle.no_truncation()
    a, b = (len(oracle.encode(text, add_special_tokens=False).ids) for text in (prompt, response))
    room = max_length - 3
    half = room // 2
    out = []
    if b > half:
        head = prompt if a <= room - half else last_tokens(oracle, prompt, half)
        oracle.enable_truncation(max_length, stride=max_length // 4, strategy="only_second")
        cut = oracle.encode(head, response)
        out += [cut, *cut.overflowing]
    if a > room - half or b <= half:
        head = response if b <= half else first_tokens(oracle, response, half)
        oracle.enable_truncation(max_length, stride=max_length // 4, strategy="only_first")
        cut = oracle.encode(prompt, head)
        out += [cut, *cut.overflowing][:None if b <= half else -1]
    return out


def last_tokens(oracle, text, n):
    oracle.no_truncation()
    return text[oracle.encode(text, add_special_tokens=False).offsets[-n][0]:]


def first_tokens(oracle, text, n):
    oracle.no_truncation()
    return text[:oracle.encode(text, add_special_tokens=False).offsets[n - 1][1]]


LONG = [("a " * 38, None), ("a b c " * 20, None), ("abc, " * 60, "short"), ("x y", "a b c " * 30), ("a b c d " * 20, "e f g " * 30), ("q " * 19, "r " * 19),
        ("q " * 20, "r " * 18), ("", "a b " * 40), ("a b " * 40, "r " * 18), ("a b " * 40, "r " * 19), ("a b c", "d e")]


@pytest.mark.parametrize("i", range(len(LONG)))
def test_the_window_with_the_highest_score_decides(folder, oracle, i):
    guard = Guard.from_pretrained(folder)
    prompt, response = LONG[i]
    each = logits_of(folder, windows_of(oracle, prompt, response))
    deciding = int(softmax(each)[:, 1].argmax())
    np.testing.assert_array_equal(guard.logits([prompt], [response])[0], each[deciding])
    details = guard.score_details([prompt], [response])
    oracle.no_truncation()
    assert (details.n_windows[0], details.window[0]) == (len(each), deciding)
    assert details.n_tokens[0] == len(oracle.encode(prompt, response).ids) and details.truncated[0] == 0
    np.testing.assert_array_equal(details.score, softmax(each[deciding:deciding + 1])[:, 1])


@pytest.fixture
def counter(folder):
    """A guard whose score rises with the number of "p" and "q" that it reads at once, and flags two of them in a full window."""
    w = {name: np.zeros_like(value) for name, value in load_file(str(folder / "model.safetensors")).items()}
    for name in w:
        w[name] += name.endswith("LayerNorm.weight")
    words = w["bert.embeddings.word_embeddings.weight"]
    words[:, 1], words[:, 2] = 1, -1
    words[[WORDS.index("p"), WORDS.index("q")], 0] = 5
    for name in ("bert.encoder.layer.0.attention.self.value", "bert.encoder.layer.0.attention.output.dense", "bert.pooler.dense"):
        w[name + ".weight"][0, 0] = 1
    w["classifier.weight"][1, 0] = 1
    save_file(w, str(folder / "model.safetensors"))
    guard = Guard.from_pretrained(folder)
    one, two = guard.score([" ".join(["p", *"a" * 37]), " ".join(["p", "q", *"a" * 36])])
    assert one < two
    guard.set_threshold((one + two) / 2)
    return guard


def test_an_attack_over_the_edge_of_a_window_is_caught(counter):
    """Any max_length // 4 = 10 neighbouring tokens stand in one window; cut into pieces that do not overlap, an attack gets through."""
    rows = [["a"] * 122 for _ in range(113)]        # four full windows
    for i, words in enumerate(rows):
        words[i], words[i + 9] = "p", "q"
    texts = [" ".join(words) for words in rows]
    assert counter.score_details(texts).n_windows.tolist() == [4] * 113 and counter.predict(texts).all()
    pieces = [" ".join(words[at:at + 38]) for words in rows for at in range(0, 122, 38)]
    flagged = counter.predict([piece for piece in pieces if len(piece) == 75]).reshape(113, 3).any(axis=1)
    assert 20 <= (~flagged).sum() <= 40     # the 9 places before each of three edges, some in the last, short piece
    assert not counter.predict(" ".join(["a"] * 122))[0]


@pytest.mark.parametrize("other", ["a", "a " * 90])
def test_an_attack_in_a_long_pair_is_caught(counter, other):
    """In prompt or response, beside a short or a long other side; the prompt's end is read with the response's beginning."""
    texts = []
    for i in range(85):
        words = ["a"] * 90
        words[i], words[i + 5] = "p", "q"
        texts.append(" ".join(words))
    sides = [other] * len(texts)
    assert (counter.score(texts, sides) > counter.score([text.replace("q", "a") for text in texts], sides)).all()
    assert (counter.score(sides, texts) > counter.score(sides, [text.replace("q", "a") for text in texts])).all()
    over = [" ".join(["a"] * 80 + ["p"]), " ".join(["q"] + ["a"] * 80)]
    apart = counter.score([over[0], "a " * 81], ["a " * 81, over[1]])
    assert counter.score(over[:1], over[1:])[0] > apart.max()


def test_long_rows_among_others(folder):
    guard = Guard.from_pretrained(folder)
    prompts, responses = [p for p, _ in LONG], [r for _, r in LONG]
    want = np.concatenate([guard.logits([p], [r]) for p, r in LONG])
    np.testing.assert_array_equal(guard.logits(prompts, responses), want)
    np.testing.assert_array_equal(guard.logits(prompts[::-1], responses[::-1]), want[::-1])


def test_truncation(folder, oracle):
    guard = Guard.from_pretrained(folder, long="truncate")
    oracle.enable_truncation(40)
    want = logits_of(folder, [oracle.encode(p, r) for p, r in LONG])
    np.testing.assert_array_equal(guard.logits([p for p, _ in LONG], [r for _, r in LONG]), want)
    details = guard.score_details([p for p, _ in LONG], [r for _, r in LONG])
    oracle.no_truncation()
    lengths = np.array([len(oracle.encode(p, r).ids) for p, r in LONG])
    np.testing.assert_array_equal(details.n_tokens, lengths)
    np.testing.assert_array_equal(details.truncated, np.maximum(lengths - 40, 0))
    np.testing.assert_array_equal(details.n_windows, 1)


def test_modes(folder):
    guard = Guard.from_pretrained(folder, long="error")
    with pytest.raises(ValueError, match="row 1 has 42 tokens, the guard reads at most 40; long='windows' or 'truncate' reads it"):
        guard.score(["a", "a " * 40])
    assert guard.score(["a", "a " * 40], long="truncate").shape == (2,)
    with pytest.raises(ValueError, match="long must be one of windows, truncate, error, got 'cut'"):
        guard.score(["a"], long="cut")
    with pytest.raises(ValueError, match="long must be one of"):
        Guard.from_pretrained(folder, long="cut")


def test_max_length(folder, tmp_path):
    assert Guard.from_pretrained(folder).max_length == 40
    for said, want in ((24, 24), (1000000000000000019884624838656, 40), (64, 40), (1e30, 40), (None, 40)):
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": said}))
        assert Guard.from_pretrained(folder).max_length == want
    assert Guard.from_pretrained(folder, max_length=30).max_length == 30
    guard = Guard.from_pretrained(folder, max_length=7)
    assert guard.score_details(["a b c d e f g h i j"]).n_windows[0] == 3       # 5 tokens a window, 1 of them again
    for bad in (6, 41):
        with pytest.raises(ValueError, match=f"max_length must be from 7 to 40, the most tokens that the model reads, got {bad}"):
            Guard.from_pretrained(folder, max_length=bad)
    guard.max_length, other = 20, Guard.from_pretrained(folder, max_length=20)      # what evaluate's protocols do
    assert guard.max_length == 20 and guard.score(PROMPTS).tolist() == other.score(PROMPTS).tolist() != Guard.from_pretrained(folder).score(PROMPTS).tolist()
    with pytest.raises(ValueError, match=r"max_length must be >= 1 and <= 2\*\*53, got 1"):
        guard.max_length = 10**20
    with pytest.raises(ValueError, match="max_length must be >= 1, got 0"):
        guard.max_length = 0
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 2}))
    with pytest.raises(FormatError, match="model_max_length 2 leaves no room"):
        Guard.from_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(FormatError, match="tokenizer_config.json: must hold an object"):
        Guard.from_pretrained(folder)


# -- labels and thresholds --

@pytest.mark.parametrize("labels, index", [
    (["safe", "unsafe"], 1), (["Unsafe", "Safe"], 0), (["HARMFUL", "fine"], 0), (["LABEL_0", "LABEL_1"], 1), (["a", "b", "toxic"], 2), (["anything"], 0),
])
def test_the_unsafe_label(tmp_path, labels, index):
    guard = Guard.from_pretrained(write(tmp_path, id2label={str(i): name for i, name in enumerate(labels)}))
    logits = guard.logits(PROMPTS)
    assert logits.shape == (5, len(labels)) and guard.unsafe_index == index
    want = softmax(logits)[:, index] if len(labels) > 1 else 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))
    np.testing.assert_allclose(guard.score(PROMPTS), want, rtol=0, atol=1e-7)


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["unsafe", "harmful"], ["bad", "safe"], ["unsafe", "toxic", "c"]])
def test_rejects_labels(tmp_path, labels):
    with pytest.raises(ValueError, match="must name exactly one of . labels"):
        Guard.from_pretrained(write(tmp_path, id2label={str(i): name for i, name in enumerate(labels)}))


def test_thresholds(folder, tmp_path):
    guard = Guard.from_pretrained(folder)
    scores = guard.score(PROMPTS)
    assert guard.threshold == 0.5
    guard.set_threshold(float(np.sort(scores)[2]), metric="f1")
    np.testing.assert_array_equal(guard.predict(PROMPTS), scores >= np.sort(scores)[2])
    guard.save_pretrained(tmp_path / "saved")
    again = Guard.from_pretrained(tmp_path / "saved")
    assert again.thresholds == {"schema_version": 1, "threshold": guard.threshold, "temperature": 1.0, "long": "windows", "max_length": 40, "metric": "f1"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(again.predict(PROMPTS), guard.predict(PROMPTS))
    with pytest.warns(UserWarning, match="was fitted with long='windows', not 'truncate'"):
        again.predict(PROMPTS, long="truncate")
    with pytest.warns(UserWarning, match="was fitted with max_length=40, not 20"):
        Guard.from_pretrained(tmp_path / "saved", max_length=20).predict(PROMPTS)
    with pytest.warns(UserWarning, match="was fitted with max_length=40, not 20") as said:
        score_stream(Guard.from_pretrained(tmp_path / "saved", max_length=20), io.BytesIO(b'{"prompt": "a"}\n{"prompt": "b"}\n'), io.BytesIO())
        create_app(Guard.from_pretrained(tmp_path / "saved", max_length=20))
    assert len(said) == 2
    modes = {(tmp_path / "saved" / name).stat().st_mode for name in ("model.safetensors", "thresholds.json")}
    assert len(modes) == 1
    guard.threshold, guard.temperature = 0.9, 2
    guard.save_pretrained(tmp_path / "set")
    again = Guard.from_pretrained(tmp_path / "set")
    assert (again.threshold, again.temperature) == (0.9, 2.0) and "metric" not in again.thresholds
    for wrong in (2, True, "0.5", math.nan):
        with pytest.raises(ValueError, match=rf"threshold must be in \[0, 1\], got {wrong!r}"):
            guard.set_threshold(wrong)
    (tmp_path / "saved" / "thresholds.json").write_text('{"schema_version": 2, "threshold": 0.5}')
    with pytest.raises(ValueError, match=r"thresholds.json: schema_version must be 1, got 2"):
        Guard.from_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "thresholds.json").write_text('{"threshold": "high"}')
    with pytest.raises(ValueError, match=r"thresholds.json: threshold must be in \[0, 1\], got 'high'"):
        Guard.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_a_fitted_temperature_is_kept_and_used(tmp_path, labels):
    names = {1: ["unsafe"], 2: ["safe", "unsafe"], 3: ["a", "unsafe", "b"]}[labels]
    guard = Guard.from_pretrained(write(tmp_path / "raw", id2label=dict(enumerate(names))))
    plain, odds = guard.score(PROMPTS), guard.log_odds(PROMPTS)
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), plain, rtol=1e-6)
    guard.set_threshold(0.5, temperature=2.5)
    scaled = guard.score(PROMPTS)
    np.testing.assert_allclose(scaled, 1 / (1 + np.exp(-odds / 2.5)), rtol=1e-6)
    np.testing.assert_allclose(guard.predict_proba(PROMPTS)[:, 1], scaled)
    np.testing.assert_array_equal(guard.log_odds(PROMPTS), odds)
    guard.save_pretrained(tmp_path / "saved")
    again = Guard.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.score(PROMPTS), scaled)
    np.testing.assert_array_equal(again.predict(PROMPTS), scaled >= 0.5)
    with pytest.raises(ValueError, match=r"temperature must be in \[0.001, 1000\], got 0"):
        guard.set_threshold(0.5, temperature=0)
    assert guard.temperature == 2.5


# -- opening and saving --

def test_rejects_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        Guard.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="a guard is a folder"):
        Guard.from_pretrained(folder / "vocab.txt")
    with pytest.raises(ValueError, match="n_threads must be >= 1, got 0"):
        Guard.from_pretrained(folder, n_threads=0)
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "more"]))
    with pytest.raises(FormatError, match="the tokenizer has 61 tokens, the model 60"):
        Guard.from_pretrained(folder)


def test_saved_guards_open_again(folder, tmp_path):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 30, "do_lower_case": True}))
    guard = Guard.from_pretrained(folder)
    guard.save_pretrained(tmp_path / "saved")
    again = Guard.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.logits(PROMPTS, RESPONSES), guard.logits(PROMPTS, RESPONSES))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"] and config["id2label"] == {"0": "safe", "1": "unsafe"}
    assert config["label2id"] == {"safe": 0, "unsafe": 1} and config["layer_norm_eps"] == 1e-12
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["model_max_length"] == 30 == again.max_length
    assert not (tmp_path / "saved" / "thresholds.json").exists()
    again.save_pretrained(tmp_path / "saved")      # onto itself
    np.testing.assert_array_equal(Guard.from_pretrained(tmp_path / "saved").logits(PROMPTS), guard.logits(PROMPTS))
    guard.save_pretrained(tmp_path / "half", dtype="float16")
    assert load_file(str(tmp_path / "half" / "model.safetensors"))["classifier.bias"].dtype == np.float16
    np.testing.assert_allclose(Guard.from_pretrained(tmp_path / "half").score(PROMPTS), guard.score(PROMPTS), rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["deberta-v3", "deberta-v2", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert", "modernbert-mean"])
def test_guards_of_every_family(tmp_path, name):
    """Scores of texts and pairs, long ones too; saved, they open as what they were."""
    c = encoder_models.config(name, num_labels=2, max_position_embeddings=70)
    folder = encoder_models.write(tmp_path / "guard", c, encoder_models.weights(c))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')      # what these families' own tokenizers are not
    guard = Guard.from_pretrained(folder)
    assert guard.unsafe_index == 1 and guard.max_length == guard.config["max_tokens"] if "roberta" in name else guard.max_length == 70
    prompts, responses = [*PROMPTS, "a b c " * 50, "x"], [r if c.get("type_vocab_size") != 1 else None for r in [*RESPONSES, None, "d e " * 60]]
    scores = guard.score(prompts, responses)
    assert np.isfinite(scores).all() and len(set(scores.tolist())) > 4
    assert guard.score_details(prompts, responses).n_windows[5] > 1
    guard.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["architectures"] == [guard.config["architecture"]] and saved["id2label"] == {"0": "safe", "1": "unsafe"}
    assert {k: v for k, v in saved.items() if k in c} == {k: v for k, v in c.items() if k != "num_labels"}
    again = Guard.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.score(prompts, responses), scores)
    assert again.max_length == guard.max_length


def test_relative_positions_have_no_end(tmp_path):
    c = encoder_models.config("deberta-v3")
    folder = encoder_models.write(tmp_path, c, encoder_models.weights(c))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')      # what these families' own tokenizers are not
    guard = Guard.from_pretrained(folder, max_length=400)      # max_position_embeddings is 90
    details = guard.score_details(["a b c d " * 95])
    assert details.n_windows[0] == 1 and details.n_tokens[0] == 382


def test_labels_are_kept_in_place(tmp_path):
    for labels, want in ((["unsafe", "safe"], ["unsafe", "safe"]), (["LABEL_0", "LABEL_1"], ["safe", "unsafe"]), (["score"], ["unsafe"])):
        guard = Guard.from_pretrained(write(tmp_path / labels[0], id2label={str(i): name for i, name in enumerate(labels)}))
        guard.save_pretrained(tmp_path / "saved")
        assert list(json.loads((tmp_path / "saved" / "config.json").read_text())["id2label"].values()) == want
        again = Guard.from_pretrained(tmp_path / "saved")
        assert again.unsafe_index == guard.unsafe_index
        np.testing.assert_array_equal(again.score(PROMPTS), guard.score(PROMPTS))


def test_guard_of_parameters(folder, tmp_path):
    params = _C.EncoderParams.read(folder, layers=[1], new_head=2, seed=3)
    (tmp_path / "saved").mkdir()
    for place in (folder, tmp_path / "saved"):      # a threshold of other weights
        (place / "thresholds.json").write_text('{"threshold": 0.93, "temperature": 3.0}')
    guard = Guard.from_params(params, folder)
    assert (guard.threshold, guard.temperature, guard.thresholds) == (0.5, 1.0, {})
    assert guard.config["num_hidden_layers"] == 1 and guard.unsafe_index == 1
    guard.save_pretrained(tmp_path / "saved")
    again = Guard.from_pretrained(tmp_path / "saved")
    assert again.thresholds == {} and again.threshold == 0.5
    np.testing.assert_array_equal(again.logits(PROMPTS), guard.logits(PROMPTS))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["num_hidden_layers"] == 1
    assert repr(again) == f"Guard({str(tmp_path / 'saved')!r}, bert, 1 layers of 33, 2 labels, float32, max_length=40, long='windows')"


# -- adapters --

def write_adapter(folder, base, tensors, **changes):
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": base, "r": 4, "lora_alpha": 8, "bias": "none", "fan_in_fan_out": False,
              "target_modules": ["query", "dense"], "modules_to_save": ["classifier"], **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({f"base_model.model.{name}": np.ascontiguousarray(value) for name, value in tensors.items()}, str(folder / "adapter_model.safetensors"))
    return folder


MODULES = ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense"]


def adapter_tensors(w, dtype=np.float32):
    rng = np.random.default_rng(4)
    out = {}
    for module in MODULES:
        n, k = w[module + ".weight"].shape
        out |= {module + ".lora_A.weight": rng.normal(0, 0.2, (4, k)).astype(dtype), module + ".lora_B.weight": rng.normal(0, 0.2, (n, 4)).astype(dtype)}
    return out | {"classifier.weight": rng.normal(0, 0.3, (2, 33)).astype(dtype), "classifier.bias": rng.normal(0, 0.3, 2).astype(dtype),
                  "bert.encoder.layer.0.output.LayerNorm.bias": rng.normal(0, 0.3, 33).astype(dtype),
                  "classifier.original_module.bias": np.ones(2, dtype=dtype),
                  "bert.encoder.layer.0.attention.self.query.base_layer.bias": rng.normal(0, 0.3, 33).astype(dtype)}


def merged(w, tensors, scale):
    out = dict(w)
    for module in MODULES:
        b, a = (tensors[f"{module}.lora_{x}.weight"].astype(np.float64) for x in "BA")
        out[module + ".weight"] = (w[module + ".weight"] + scale(module) * b @ a).astype(np.float32)
    return out | {name.replace(".base_layer", ""): value.astype(np.float32) for name, value in tensors.items() if ".lora_" not in name and ".original" not in name}


@pytest.mark.parametrize("changes, scale", [
    ({}, lambda m: 2), ({"use_rslora": True}, lambda m: 4), ({"rank_pattern": {"query": 4}, "alpha_pattern": {"layer.1.output.dense": 2}}, lambda m: 0.5 if "1" in m else 2),
])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_adapters(tmp_path, folder, changes, scale, dtype):
    w = load_file(str(folder / "model.safetensors"))
    tensors = adapter_tensors(w, dtype)
    c = json.loads((folder / "config.json").read_text())
    want = Guard.from_pretrained(_with(tmp_path / "merged", folder, c, merged(w, tensors, scale))).logits(PROMPTS, RESPONSES)
    for base in (str(folder), "../guard"):
        adapter = write_adapter(tmp_path / f"adapter{len(base)}", base, tensors, **changes)
        guard = Guard.from_pretrained(adapter)
        np.testing.assert_allclose(guard.logits(PROMPTS, RESPONSES), want, rtol=0, atol=2e-5)
        assert str(adapter) in repr(guard)
        guard.save_pretrained(tmp_path / f"saved{len(base)}")
        np.testing.assert_array_equal(Guard.from_pretrained(tmp_path / f"saved{len(base)}").logits(PROMPTS, RESPONSES), guard.logits(PROMPTS, RESPONSES))


def _with(target, folder, c, w):
    bert_model.write(target, c, w)
    (target / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    return target


def test_adapters_on_a_bare_model(tmp_path, folder, monkeypatch):
    """The base has no head: the adapter brings it, with another number of labels; the base is found by its name."""
    w = load_file(str(folder / "model.safetensors"))
    tensors = adapter_tensors(w) | {"classifier.weight": np.ones((1, 33), dtype=np.float32), "classifier.bias": np.ones(1, dtype=np.float32)}
    save_file({name.removeprefix("bert."): value for name, value in w.items() if "classifier" not in name}, str(folder / "model.safetensors"))
    guard = Guard.from_pretrained(write_adapter(tmp_path / "adapter", str(folder), tensors))
    assert guard.logits(PROMPTS).shape == (5, 1)
    np.testing.assert_allclose(guard.score(PROMPTS), 1 / (1 + np.exp(-guard.logits(PROMPTS)[:, 0].astype(np.float64))), atol=1e-7)
    named = {"minilm": folder, "named": tmp_path / "named"}
    monkeypatch.setattr("harmaug.models.resolve", lambda name, download=False: named.get(name, name))
    write_adapter(tmp_path / "named", "minilm", tensors)
    np.testing.assert_array_equal(Guard.from_pretrained("named").logits(PROMPTS), guard.logits(PROMPTS))


@pytest.mark.parametrize("settings, change, match", [
    ({"peft_type": "IA3"}, None, "peft_type must be LORA, got 'IA3'"),
    ({"use_dora": True}, None, "use_dora is not supported"),
    ({"fan_in_fan_out": True}, None, "fan_in_fan_out is not supported"),
    ({"r": 0}, None, "r must be a number > 0, got 0"),
    ({"lora_alpha": "x"}, None, "lora_alpha must be a number > 0"),
    ({"rank_pattern": {"(a+)+": 3}}, None, "rank_pattern must map names of modules"),
    ({"base_model_name_or_path": None}, None, "base_model_name_or_path is missing"),
    ({}, ("bert.nothing.lora_A.weight", (4, 33)), "module 'bert.nothing' lacks lora_B"),
    ({}, ("bert.encoder.layer.7.output.dense.bias", (33,)), "the base model has no parameter 'bert.encoder.layer.7.output.dense.bias'"),
    ({}, ("bert.pooler.dense.bias", (3,)), r"'bert.pooler.dense.bias' must have shape \(33,\), got \(3,\)"),
    ({}, ("bert.encoder.layer.0.attention.self.query.lora_A.weight", (4, 30)), r"must have shape \(4, 33\), got \(4, 30\)"),
    ({}, ("bert.encoder.layer.0.attention.self.query.lora_B.weight", (30, 4)), r"B of .* must have shape \(33, rank\)"),
    ({}, ("bert.encoder.layer.0.attention.self.query.lora_magnitude_vector", (33,)), "lora_magnitude_vector' is not supported"),
])
def test_rejects_adapters(tmp_path, folder, settings, change, match):
    tensors = adapter_tensors(load_file(str(folder / "model.safetensors")))
    if change is not None:
        tensors[change[0]] = np.zeros(change[1], dtype=np.float32)
    with pytest.raises(FormatError, match=match):
        Guard.from_pretrained(write_adapter(tmp_path / "adapter", str(folder), tensors, **settings))


def test_rejects_an_adapter_without_its_base(tmp_path, folder):
    tensors = adapter_tensors(load_file(str(folder / "model.safetensors")))
    adapter = write_adapter(tmp_path / "adapter", "no/such-base", tensors)
    with pytest.raises(FileNotFoundError, match="its base model is not here"):
        Guard.from_pretrained(adapter)
    save_file({"classifier.weight": tensors["classifier.weight"]}, str(adapter / "adapter_model.safetensors"))
    (adapter / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text().replace("no/such-base", str(folder)))
    with pytest.raises(FormatError, match="tensor 'classifier.weight' does not begin with base_model.model."):
        Guard.from_pretrained(adapter)
