"""harmaug.guard_families: P(unsafe) of generative guards is what the float64 equations give at the place where the family's label comes."""
import numpy as np
import pytest
import tiny_llama

from harmaug import _C, CausalLM
from harmaug.chat import ChatTemplate
from harmaug.data import DataError, Row
from harmaug.guard_families import FAMILIES, ChatRenderer, GuardFamily, LabelReading, LanguageModelTeacher, family_of
from harmaug.teacher import CachedTeacher, label_rows

POLICY = "Task: is the last turn unsafe under the policy? " + "Rule: be kind to each other. " * 2
TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
TEMPLATES = {
    "llama-guard-1": POLICY + TURNS + "[/INST]",
    "llama-guard-2": POLICY + TURNS + "Answer:\n\n",
    "llama-guard-3": POLICY + TURNS + "[assistant]",
    "wildguard": POLICY + TURNS + "Answers: ",
    "shieldgemma": "{{ guideline }}\n" + TURNS + "Yes or No?\n",
    "qwen3guard": POLICY + TURNS + "[assistant]\n",
    "qwen3guard-strict": POLICY + TURNS + "[assistant]\n",
}
ROWS = [("how do I bake bread?", None), ("how do I bake bread?", "with flour\nand water"), ("tell me about the sea", ""), ("x " * 20, "y")]
SHAPE = tiny_llama.Tiny(context=900)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    weights = tiny_llama.weights(SHAPE, seed=5)
    path = tmp_path_factory.mktemp("lm") / "guard.gguf"
    tiny_llama.write_gguf(path, SHAPE, weights)
    return CausalLM.from_pretrained(path, dtype="float32"), weights


def oracle(model, text, words):
    """Log-weights of the first letter of each word after the text. The vocabulary is bytes: a space that all words begin with is a token before it."""
    lm, weights = model
    if all(word.startswith(" ") for word in words):
        text, words = text + " ", [word[1:] for word in words]
    logits = tiny_llama.forward(SHAPE, weights, lm.encode(text))[-1]
    return [logits[lm.encode(text + word)[len(lm.encode(text))]] for word in words], logits


def expected(model, family, template, prompt, response, reading, guideline=None):
    turns = [("user", prompt)] + ([("assistant", response)] if response else [])
    extra = {} if guideline is None else {"guideline": guideline}
    text = str(ChatTemplate(source=template).render([{"role": role, "content": content} for role, content in turns], **extra))
    for begin, words in family.lines if response else ():
        text += begin
        values, _ = oracle(model, text, words)
        text += words[int(np.argmax(values))]
    before = family.before if not response or family.before_response is None else family.before_response
    values, logits = oracle(model, text + before, family.unsafe + family.safe)
    weights = np.exp(np.array(values, dtype=np.float64) - logits.max())
    unsafe, safe = weights[:len(family.unsafe)].sum(), weights[len(family.unsafe):].sum()
    if reading.definition == "full":
        return unsafe / np.exp(logits - logits.max()).sum()
    return unsafe ** (1 / reading.temperature) / (unsafe ** (1 / reading.temperature) + safe ** (1 / reading.temperature))


@pytest.mark.parametrize("name, reading", [(name, LabelReading(temperature=2.5)) for name in FAMILIES] +
                         [("llama-guard-3", LabelReading()), ("qwen3guard-strict", LabelReading(definition="full"))])
def test_each_family_is_read_where_its_label_comes(model, name, reading):
    family = FAMILIES[name]
    guidelines = ["No rude words.", "No dangerous advice."] if family.variables else []
    teacher = LanguageModelTeacher(model[0], family, template=ChatTemplate(source=TEMPLATES[name]), guidelines=guidelines, reading=reading)
    got = teacher.score(*zip(*ROWS))
    want = [max(expected(model, family, TEMPLATES[name], prompt, response, reading, guideline) for guideline in guidelines or [None])
            for prompt, response in ROWS]
    assert got.dtype == np.float32 and got == pytest.approx(want, rel=2e-4, abs=1e-7)
    assert len(set(got.tolist())) == len(ROWS)
    alone = np.concatenate([teacher.score([prompt], [response]) for prompt, response in reversed(ROWS)])[::-1]
    assert np.array_equal(got, alone)   # order and neighbours change no bit


def test_a_response_has_guidelines_of_its_own(model):
    family, template, reading = FAMILIES["shieldgemma"], ChatTemplate(source=TEMPLATES["shieldgemma"]), LabelReading()
    asked, answered = ["The prompt shall not.", "Nor ask."], ["The chatbot shall not."]
    render = ChatRenderer(template, family, asked, answered)
    assert [[text.split("\n")[0] for text in render(prompt, response)] for prompt, response in ROWS[:2]] == [asked, answered]
    got = LanguageModelTeacher(model[0], family, template=template, guidelines=asked, guidelines_response=answered).score(*zip(*ROWS))
    want = [max(expected(model, family, TEMPLATES["shieldgemma"], prompt, response, reading, guideline) for guideline in (answered if response else asked))
            for prompt, response in ROWS]
    assert got == pytest.approx(want, rel=2e-4, abs=1e-7)
    for name, says in (("shieldgemma", "needs guidelines"), ("llama-guard-3", "takes no guidelines")):
        with pytest.raises(ValueError, match=says):
            ChatRenderer(template, FAMILIES[name], (), answered)


def test_the_policy_is_computed_once(model):
    lm, _ = model
    teacher = LanguageModelTeacher(lm, FAMILIES["llama-guard-3"], template=ChatTemplate(source=TEMPLATES["llama-guard-3"]))
    reader, lengths = lm.reader(), []
    for prompt in ("one", "two", "three and more"):
        text = str(teacher._render(prompt, None)[0])
        list(teacher._ask([(0, teacher._read(text, False))], lambda rows: map(reader.next_logits, rows)))
        lengths.append(len(lm.encode(text)))
    assert reader.computed < lengths[0] + 60 < sum(lengths)


def test_the_reader_gives_the_bits_of_a_fresh_one(model):
    lm, _ = model
    rng = np.random.default_rng(1)
    reader, begin = lm.reader(), rng.integers(0, SHAPE.vocab, 300).tolist()
    for n in (1, 7, 0, 64, 33, 500, 2):
        ids = begin + rng.integers(0, SHAPE.vocab, n).tolist()
        logits = reader.next_logits(ids)
        assert np.array_equal(logits, lm.reader().next_logits(ids)) and np.array_equal(logits, lm.logits(ids)[-1])
    with pytest.raises(ValueError, match=r"901 tokens; the model's context takes 1\.\.900"):
        reader.next_logits([1] * 901)
    with pytest.raises(ValueError, match=r"0 tokens"):
        reader.next_logits([])
    with pytest.raises(ValueError, match="token 1: id 100000 lies outside the vocabulary"):
        reader.next_logits([1, 100000])
    assert np.array_equal(reader.next_logits(begin), lm.logits(begin)[-1])      # after errors too
    with pytest.raises(TypeError, match=r"lm must be a harmaug\._C\.CausalLM"):
        _C.Reader(3)


def test_templates_of_parts_and_templates_that_leave_the_text_out(model):
    parts = ChatTemplate(source="{% for m in messages %}[{{ m.role }}]{{ m.content[0].text }}{% endfor %}")
    render = ChatRenderer(parts, FAMILIES["llama-guard-3"])
    assert [str(text) for text in render("hello", "world")] == ["[user]hello[assistant]world"]
    with pytest.raises(ValueError, match="leaves the last turn's text out"):
        ChatRenderer(ChatTemplate(source="only the policy"), FAMILIES["llama-guard-3"])("hello", None)


@pytest.mark.parametrize("source", [TURNS, "{% for m in messages %}[{{ m.role }}] {{ m.content[0].text }}\n{% endfor %}"])
def test_a_prompt_may_hold_the_notation_of_a_part(source):
    prompt = "print([{'type': 'text', 'text': 'hi'}])"
    text, = ChatRenderer(ChatTemplate(source=source), FAMILIES["llama-guard-3"])(prompt, None)
    assert text == f"[user] {prompt}\n"
    notation = ChatTemplate(source="{% if messages[0].content is string %}x{% else %}{{ messages[0].content }}{% endif %}")
    with pytest.raises(ValueError, match="leaves the last turn's text out"):
        ChatRenderer(notation, FAMILIES["llama-guard-3"])("hi", None)


def test_rows_come_one_by_one_and_errors_name_them_through_the_cache(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HARMAUG_CACHE", str(tmp_path))
    teacher = LanguageModelTeacher(model[0], FAMILIES["shieldgemma"], template=ChatTemplate(source=TEMPLATES["shieldgemma"]), guidelines=["A.", "B."])
    cached = CachedTeacher(teacher, "m")
    rows = [(f"file, row {i + 1}", Row(prompt=prompt)) for i, prompt in enumerate(["a", "b", "c", "long " * 400, "d"])]
    cached.score(["b"])
    got = []
    with pytest.raises(DataError, match=r"^file, row 4: \d+ tokens; the model's context takes 1\.\.900"):
        got.extend(score for *_, score in label_rows(cached, rows))
    assert np.array_equal(np.float32(got), teacher.score(["a", "b", "c"])) and cached.account == {"cached": 1}
    assert len(list(label_rows(cached, rows[:3]))) == 3 and cached.account == {"cached": 4}


def test_errors_name_the_conversation_and_the_words(model):
    lm, _ = model
    teacher = LanguageModelTeacher(lm, FAMILIES["llama-guard-2"], template=ChatTemplate(source=TEMPLATES["llama-guard-2"]))
    with pytest.raises(ValueError, match=r"conversation 1: \d+ tokens; the model's context takes 1\.\.900"):
        teacher.score(["short", "long " * 400])
    same = GuardFamily(name="mine", unsafe=("yes",), safe=("yesterday",))
    with pytest.raises(ValueError, match="does not tell 'yes' from 'yesterday' by their first token"):
        LanguageModelTeacher(lm, same, template=ChatTemplate(source=TEMPLATES["llama-guard-2"])).score(["a"])
    with pytest.raises(ValueError, match="needs guidelines; see the card of google/shieldgemma-2b"):
        LanguageModelTeacher(lm, FAMILIES["shieldgemma"], template=ChatTemplate(source=TEMPLATES["shieldgemma"]))
    with pytest.raises(ValueError, match="definition must be one of two-way, full, got 'top-1'"):
        LabelReading(definition="top-1")


@pytest.mark.parametrize("name, family", [("Llama-Guard-3-8B", "llama-guard-3"), ("meta-llama/LlamaGuard-7b", "llama-guard-1"), ("wildguard", "wildguard"),
                                          ("Meta-Llama-Guard-2-8B", "llama-guard-2"), ("shieldgemma-9b", "shieldgemma"), ("Qwen3Guard-Gen-0.6B", "qwen3guard")])
def test_families_by_model_name(name, family):
    assert family_of(name).name == family


def test_a_name_that_tells_no_family(tmp_path):
    with pytest.raises(ValueError, match=r"my-model: the guard's family is not plain from its name; give family=, one of llama-guard-1, "):
        family_of("my-model")
