#include <stdatomic.h>

#include "python/causal_lm.h"

#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "generation/loop.h"

typedef struct generation_run_object {
    PyObject_HEAD
    ha_run *run;
    PyObject *lm, *tokenizer;       /* kept alive */
    atomic_int busy;                /* a call is in flight: a run serves one thread at a time */
    int failed;
} generation_run_object;

/* Takes the run for this call; 0, or -1 with RuntimeError set. */
static int
take(generation_run_object *self)
{
    if (atomic_exchange(&self->busy, 1)) {
        PyErr_SetString(PyExc_RuntimeError, "a generation run is used by one thread at a time");
        return -1;
    }
    if (self->failed) {
        atomic_store(&self->busy, 0);
        PyErr_SetString(PyExc_RuntimeError, "this generation run has failed before");
        return -1;
    }
    return 0;
}

static void
give(generation_run_object *self)
{
    atomic_store(&self->busy, 0);
}

/* -- new -- */

/* Token ids from any sequence of ints: malloc'ed, each within int32 and not negative. NULL with an exception set. */
static int32_t *
parse_ids(PyObject *obj, const char *what, size_t *n)
{
    PyArrayObject *array = py_ids_array(obj, what);
    if (array == NULL) {
        return NULL;
    }
    *n = (size_t)PyArray_SIZE(array);
    const int64_t *wide = PyArray_DATA(array);
    int32_t *ids = malloc((*n + 1) * sizeof(*ids));
    if (ids == NULL) {
        PyErr_NoMemory();
    }
    for (size_t i = 0; ids != NULL && i < *n; i++) {
        if (wide[i] < 0 || wide[i] > INT32_MAX) {
            PyErr_Format(PyExc_ValueError, "%s: token %zu: id %lld is no token id", what, i, (long long)wide[i]);
            free(ids);
            ids = NULL;
            break;
        }
        ids[i] = (int32_t)wide[i];
    }
    Py_DECREF(array);
    return ids;
}

/* An "O&" converter: a non-negative int below 2^64; ValueError otherwise, not OverflowError, for it is a range like any other. */
static int
as_u64(PyObject *obj, void *out)
{
    const unsigned long long value = PyLong_AsUnsignedLongLong(obj);
    if (PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError, "seeds, indices and counts must be in 0..2**64 - 1, got %R", obj);
        }
        return 0;
    }
    *(uint64_t *)out = value;
    return 1;
}

/* Moves the options of ha_sampling out of `kwargs` (a new dict, or NULL) into *out; -1 with an exception set. */
static int
take_sampling(PyObject *kwargs, ha_sampling *out)
{
    const struct { const char *name; double *value; } numbers[] = {
        {"temperature", &out->temperature}, {"top_p", &out->top_p}, {"min_p", &out->min_p}, {"typical_p", &out->typical_p},
        {"repetition_penalty", &out->repetition_penalty}, {"presence_penalty", &out->presence_penalty}, {"frequency_penalty", &out->frequency_penalty},
    };
    *out = ha_sampling_plain;
    for (size_t i = 0; kwargs != NULL && i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        PyObject *value = PyDict_GetItemString(kwargs, numbers[i].name);
        if (value != NULL) {
            *numbers[i].value = PyFloat_AsDouble(value);
            if (PyErr_Occurred() || PyDict_DelItemString(kwargs, numbers[i].name) < 0) {
                return -1;
            }
        }
    }
    PyObject *top_k = kwargs != NULL ? PyDict_GetItemString(kwargs, "top_k") : NULL;
    uint64_t k = 0;
    if (top_k != NULL && (!as_u64(top_k, &k) || PyDict_DelItemString(kwargs, "top_k") < 0)) {
        return -1;
    }
    out->top_k = (size_t)k;
    return 0;
}

/* Banned runs: a sequence of sequences of ids. *ids and *ends are malloc'ed; -1 with an exception set. */
static int
parse_banned(PyObject *obj, int32_t **ids, size_t **ends, size_t *n)
{
    const Py_ssize_t count = obj != NULL ? PySequence_Size(obj) : 0;
    size_t total = 0;
    if (count < 0 || (*ends = calloc((size_t)count + 1, sizeof(**ends))) == NULL) {
        return count < 0 ? -1 : (PyErr_NoMemory(), -1);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(obj, i);
        size_t length = 0;
        int32_t *run = item != NULL ? parse_ids(item, "banned", &length) : NULL;
        Py_XDECREF(item);
        int32_t *grown = run != NULL ? realloc(*ids, (total + length + 1) * sizeof(**ids)) : NULL;
        if (grown == NULL) {
            free(run);
            return PyErr_Occurred() ? -1 : (PyErr_NoMemory(), -1);
        }
        *ids = grown;
        memcpy(grown + total, run, length * sizeof(*run));
        free(run);
        (*ends)[i] = total += length;
    }
    *n = (size_t)count;
    return 0;
}

static PyObject *
generation_run_create(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"lm", "tokenizer", "batch_size", "max_new_tokens", "min_new_tokens", "seed", "stop_ids", "banned", "n_threads", NULL};
    PyObject *lm = NULL, *tokenizer = NULL, *stop_obj = NULL, *banned_obj = NULL, *module = PyType_GetModule(type), *result = NULL;
    uint64_t batch_size = 32, max_new_tokens = 64, min_new_tokens = 0;
    ha_generation_options options = {0};
    if (take_sampling(kwargs, &options.sampling) < 0 ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$O&O&O&O&OOi:GenerationRun", names, &lm, &tokenizer, as_u64, &batch_size,
                                     as_u64, &max_new_tokens, as_u64, &min_new_tokens, as_u64, &options.seed, &stop_obj, &banned_obj,
                                     &options.n_threads)) {
        return NULL;
    }
    const causal_lm_object *model = py_causal_lm(module, lm);
    const ha_tokenizer *tok = NULL;
    int32_t *stop_ids = NULL, *banned = NULL;
    size_t *banned_ends = NULL;
    if (model == NULL || (tokenizer != Py_None && (tok = py_tokenizer(module, tokenizer)) == NULL) ||
        (stop_obj != NULL && (stop_ids = parse_ids(stop_obj, "stop_ids", &options.n_stop_ids)) == NULL) ||
        parse_banned(banned_obj, &banned, &banned_ends, &options.n_banned) < 0) {
        goto done;
    }
    options.batch_size = (size_t)batch_size;
    options.max_new_tokens = (size_t)max_new_tokens;
    options.min_new_tokens = (size_t)min_new_tokens;
    options.stop_ids = stop_ids;
    options.banned = banned;
    options.banned_ends = banned_ends;
    if ((options.n_threads = py_threads(options.n_threads > 0 ? options.n_threads : model->n_threads)) == 0) {
        goto done;
    }
    ha_run *run = NULL;
    ha_error err;
    ha_status status = ha_run_new(model->decoder, tok, &options, &run, &err);
    if (status != HA_OK) {
        py_raise(module, status, &err);
        goto done;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    generation_run_object *self = (generation_run_object *)alloc(type, 0);
    if (self == NULL) {
        ha_run_free(run);
        goto done;
    }
    self->run = run;
    self->lm = Py_NewRef(lm);
    self->tokenizer = Py_NewRef(tokenizer);
    result = (PyObject *)self;
done:
    free(stop_ids);
    free(banned);
    free(banned_ends);
    return result;
}

/* With a dict of its own to take options out of. */
static PyObject *
generation_run_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *own = kwargs != NULL ? PyDict_Copy(kwargs) : NULL;
    PyObject *self = kwargs != NULL && own == NULL ? NULL : generation_run_create(type, args, own);
    Py_XDECREF(own);
    return self;
}

static void
generation_run_dealloc(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    generation_run_object *self = (generation_run_object *)obj;
    ha_run_free(self->run);
    Py_XDECREF(self->lm);
    Py_XDECREF(self->tokenizer);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(obj);
    Py_DECREF(type);
}

/* -- methods -- */

/* A tuple of bytes as texts that borrow from it: malloc'ed (n + 1,). NULL with an exception set. */
static ha_text *
parse_stops(PyObject *stops, size_t *n)
{
    *n = 0;
    const Py_ssize_t count = stops != NULL ? PyTuple_Size(stops) : 0;
    if (count < 0) {
        return NULL;
    }
    ha_text *texts = calloc((size_t)count + 1, sizeof(*texts));
    if (texts == NULL) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; texts != NULL && i < count; i++) {
        char *data = NULL;
        Py_ssize_t length = 0;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(stops, i), &data, &length) < 0) {
            free(texts);
            return NULL;
        }
        texts[i] = (ha_text){data, (size_t)length};
    }
    *n = (size_t)count;
    return texts;
}

static PyObject *
generation_run_add(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ids", "n", "first_index", "stops", "stop_after_text", NULL};
    generation_run_object *self = (generation_run_object *)obj;
    PyObject *ids_obj = NULL, *stops_obj = NULL;
    uint64_t n = 1;
    ha_request request = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$O&O&O!p:add", names, &ids_obj, as_u64, &n, as_u64, &request.first_index,
                                     &PyTuple_Type, &stops_obj, &request.stop_after_text)) {
        return NULL;
    }
    PyObject *result = NULL;
    ha_text *stops = NULL;
    int32_t *ids = parse_ids(ids_obj, "prompt", &request.n_ids);
    if (ids == NULL || (stops = parse_stops(stops_obj, &request.n_stops)) == NULL || take(self) < 0) {
        goto done;
    }
    request.ids = ids;
    request.n_samples = (size_t)n;
    request.stops = stops;
    ha_error err;
    ha_status status = ha_run_add(self->run, &request, &err);
    give(self);
    result = status == HA_OK ? Py_NewRef(Py_None) : py_raise(PyType_GetModule(Py_TYPE(obj)), status, &err);
done:
    free(ids);
    free(stops);
    return result;
}

static PyObject *
generation_run_step(PyObject *obj, PyObject *unused)
{
    (void)unused;
    generation_run_object *self = (generation_run_object *)obj;
    if (take(self) < 0) {
        return NULL;
    }
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ha_run_step(self->run, &err);
    Py_END_ALLOW_THREADS
    self->failed = status != HA_OK;
    give(self);
    if (status != HA_OK) {
        return py_raise(PyType_GetModule(Py_TYPE(obj)), status, &err);
    }
    Py_RETURN_NONE;
}

static PyObject *
generated_tuple(const ha_generated *g)
{
    static const char *const reasons[] = {[HA_STOP_EOS] = "eos", [HA_STOP_STRING] = "stop", [HA_STOP_LENGTH] = "length"};
    PyObject *ids = PyTuple_New((Py_ssize_t)g->n_ids);
    for (size_t i = 0; ids != NULL && i < g->n_ids; i++) {
        PyObject *id = PyLong_FromLong(g->ids[i]);
        if (id == NULL || PyTuple_SetItem(ids, (Py_ssize_t)i, id) < 0) {
            Py_CLEAR(ids);
        }
    }
    PyObject *text = ids != NULL ? PyUnicode_DecodeUTF8((const char *)g->text, (Py_ssize_t)g->text_length, "replace") : NULL;
    if (text == NULL) {
        Py_XDECREF(ids);
        return NULL;
    }
    return Py_BuildValue("(KKNNds)", (unsigned long long)g->request, (unsigned long long)g->sample, text, ids, g->logprob, reasons[g->reason]);
}

static PyObject *
generation_run_take(PyObject *obj, PyObject *unused)
{
    (void)unused;
    generation_run_object *self = (generation_run_object *)obj;
    PyObject *list = PyList_New(0);
    if (list == NULL || take(self) < 0) {
        Py_XDECREF(list);
        return NULL;
    }
    ha_generated generated;
    while (list != NULL && ha_run_next(self->run, &generated)) {
        PyObject *item = generated_tuple(&generated);
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    give(self);
    return list;
}

static PyObject *
generation_run_waiting(PyObject *obj, void *unused)
{
    (void)unused;
    generation_run_object *self = (generation_run_object *)obj;
    if (take(self) < 0) {
        return NULL;
    }
    const size_t n = ha_run_waiting(self->run);
    give(self);
    return PyLong_FromSize_t(n);
}

static PyObject *
generation_run_idle(PyObject *obj, void *unused)
{
    (void)unused;
    generation_run_object *self = (generation_run_object *)obj;
    if (take(self) < 0) {
        return NULL;
    }
    const int idle = ha_run_idle(self->run);
    give(self);
    return PyBool_FromLong(idle);
}

static PyObject *
generation_run_totals(PyObject *obj, void *unused)
{
    (void)unused;
    generation_run_object *self = (generation_run_object *)obj;
    ha_run_totals t;
    if (take(self) < 0) {
        return NULL;
    }
    ha_run_totals_get(self->run, &t);
    give(self);
    return Py_BuildValue("{s:K,s:K,s:K,s:K}", "prompt_tokens", (unsigned long long)t.prompt_tokens,
                         "prompt_tokens_computed", (unsigned long long)t.prompt_tokens_computed,
                         "new_tokens", (unsigned long long)t.new_tokens, "steps", (unsigned long long)t.steps);
}

static PyMethodDef generation_run_methods[] = {
    {"add", (PyCFunction)(void (*)(void))generation_run_add, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("add(ids, *, n=1, first_index=0, stops=(), stop_after_text=False)\n--\n\nn samples behind a prompt; stops is a tuple of bytes.")},
    {"step", generation_run_step, METH_NOARGS, PyDoc_STR("step()\n--\n\nOne forward pass; one token for each live sample.")},
    {"take", generation_run_take, METH_NOARGS,
     PyDoc_STR("take()\n--\n\nFinished samples in (request, sample) order, as far as that order is complete:\n"
               "(request, sample, text, ids, logprob, stop_reason).")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef generation_run_getters[] = {
    {"waiting", generation_run_waiting, NULL, PyDoc_STR("Samples added and not begun."), NULL},
    {"idle", generation_run_idle, NULL, PyDoc_STR("No sample is live or waiting."), NULL},
    {"totals", generation_run_totals, NULL, PyDoc_STR("prompt_tokens, prompt_tokens_computed, new_tokens, steps."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(generation_run_doc,
"GenerationRun(lm, tokenizer, *, batch_size=32, max_new_tokens=64, min_new_tokens=0, seed=0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,\n"
"              typical_p=1.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, stop_ids=(), banned=(), n_threads=0)\n"
"--\n\n"
"Many samples behind many prompts, decoded together (see csrc/generation/loop.h).\n\n"
"Parameters\n"
"----------\n"
"lm : CausalLM\n"
"tokenizer : Tokenizer or None\n"
"    None: samples have ids only, and stop strings are refused.\n"
"banned : sequence of sequences of int\n"
"    Runs of tokens whose last never follows the others; a run of one is a token that never comes.\n");

static PyType_Slot generation_run_slots[] = {
    {Py_tp_new, generation_run_new},
    {Py_tp_dealloc, generation_run_dealloc},
    {Py_tp_methods, generation_run_methods},
    {Py_tp_getset, generation_run_getters},
    {Py_tp_doc, (void *)generation_run_doc},
    {0, NULL},
};

static PyType_Spec generation_run_spec = {
    .name = "harmaug._C.GenerationRun",
    .basicsize = sizeof(generation_run_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = generation_run_slots,
};

/* -- the sampler alone, for whoever wants to know what it keeps -- */

/* What the two functions share: logits copied, for a draw changes them on its way; the history; the sampler. */
typedef struct sampler_call {
    ha_sampling sampling;
    ha_history history;
    PyArrayObject *logits;
    int32_t *prompt, *ids, *banned;
    ha_sampler *sampler;
} sampler_call;

static void
end_call(sampler_call *call)
{
    Py_XDECREF(call->logits);
    free(call->prompt);
    free(call->ids);
    free(call->banned);
    ha_sampler_free(call->sampler);
}

/* Ids within the vocabulary of the logits. 0, or -1 with an exception set. */
static int
parse_known_ids(PyObject *obj, const char *what, size_t vocab_size, int32_t **ids, size_t *n)
{
    if (obj == NULL) {
        return 0;
    }
    *ids = parse_ids(obj, what, n);
    for (size_t i = 0; *ids != NULL && i < *n; i++) {
        if ((size_t)(*ids)[i] >= vocab_size) {
            PyErr_Format(PyExc_ValueError, "%s: id %d lies outside the vocabulary of %zu", what, (int)(*ids)[i], vocab_size);
            return -1;
        }
    }
    return *ids != NULL ? 0 : -1;
}

/* `uniform` NULL: not an argument. 0, or -1 with an exception set. */
static int
begin_call(PyObject *module, PyObject *args, PyObject *kwargs, const char *format, double *uniform, sampler_call *call)
{
    static char *names[] = {"logits", "prompt", "ids", "banned", NULL}, *with_uniform[] = {"logits", "uniform", "prompt", "ids", "banned", NULL};
    PyObject *logits = NULL, *prompt = NULL, *ids = NULL, *banned = NULL, *own = kwargs != NULL ? PyDict_Copy(kwargs) : NULL;
    ha_error err;
    int ok = (kwargs == NULL || own != NULL) && take_sampling(own, &call->sampling) == 0 &&
             (uniform != NULL ? PyArg_ParseTupleAndKeywords(args, own, format, with_uniform, &logits, uniform, &prompt, &ids, &banned)
                              : PyArg_ParseTupleAndKeywords(args, own, format, names, &logits, &prompt, &ids, &banned));
    Py_XDECREF(own);
    if (!ok || (call->logits = (PyArrayObject *)PyArray_FROM_OTF(logits, NPY_FLOAT32, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST | NPY_ARRAY_ENSURECOPY)) == NULL) {
        return -1;
    }
    const size_t vocab = (size_t)PyArray_SIZE(call->logits);
    ha_status status = ha_sampling_check(&call->sampling, &err);
    if (status == HA_OK && (PyArray_NDIM(call->logits) != 1 || vocab == 0 || (uniform != NULL && !(*uniform >= 0 && *uniform < 1)))) {
        status = ha_fail(&err, HA_ERR_VALUE, "sampler: logits must be one row of at least one, uniform in [0, 1)");
    }
    if (status != HA_OK || (status = ha_sampler_new(vocab, &call->sampler, &err)) != HA_OK) {
        py_raise(module, status, &err);
        return -1;
    }
    if (parse_known_ids(prompt, "prompt", vocab, &call->prompt, &call->history.n_prompt) < 0 ||
        parse_known_ids(ids, "ids", vocab, &call->ids, &call->history.n_ids) < 0 ||
        parse_known_ids(banned, "banned", vocab, &call->banned, &call->history.n_banned) < 0) {
        return -1;
    }
    call->history.prompt = call->prompt;
    call->history.ids = call->ids;
    call->history.banned = call->banned;
    return 0;
}

static PyObject *
sampler_probabilities(PyObject *module, PyObject *args, PyObject *kwargs)
{
    sampler_call call = {0};
    PyArrayObject *out = NULL;
    ha_error err;
    if (begin_call(module, args, kwargs, "O|$OOO:sampler_probabilities", NULL, &call) == 0 &&
        (out = (PyArrayObject *)PyArray_SimpleNew(1, PyArray_DIMS(call.logits), NPY_FLOAT32)) != NULL) {
        ha_status status = ha_sampler_probabilities(call.sampler, ha_kernels_get(), &call.sampling, &call.history, PyArray_DATA(call.logits),
                                                    PyArray_DATA(out), &err);
        if (status != HA_OK) {
            Py_CLEAR(out);
            py_raise(module, status, &err);
        }
    }
    end_call(&call);
    return (PyObject *)out;
}

static PyObject *
sampler_draw(PyObject *module, PyObject *args, PyObject *kwargs)
{
    sampler_call call = {0};
    PyObject *result = NULL;
    double uniform = 0, logprob = 0;
    int32_t token = 0;
    ha_error err;
    if (begin_call(module, args, kwargs, "Od|$OOO:sampler_draw", &uniform, &call) == 0) {
        ha_status status = ha_sampler_draw(call.sampler, ha_kernels_get(), &call.sampling, &call.history, PyArray_DATA(call.logits), uniform, &token,
                                           &logprob, &err);
        result = status == HA_OK ? Py_BuildValue("(id)", (int)token, logprob) : py_raise(module, status, &err);
    }
    end_call(&call);
    return result;
}

static PyObject *
sampler_uniform(PyObject *module, PyObject *args)
{
    unsigned long long seed, index, position;
    (void)module;
    return PyArg_ParseTuple(args, "KKK:sampler_uniform", &seed, &index, &position) ? PyFloat_FromDouble(ha_uniform(seed, index, position)) : NULL;
}

static PyMethodDef sampler_functions[] = {
    {"sampler_probabilities", (PyCFunction)(void (*)(void))sampler_probabilities, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("sampler_probabilities(logits, *, prompt=(), ids=(), banned=(), **sampling)\n--\n\n"
               "What the sampler draws from: float32 (vocab_size,), zeros outside the kept set. sampling as in GenerationRun; prompt and ids (the\n"
               "continuation) are what penalties look at; banned are ids.")},
    {"sampler_draw", (PyCFunction)(void (*)(void))sampler_draw, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("sampler_draw(logits, uniform, *, prompt=(), ids=(), banned=(), **sampling)\n--\n\n"
               "(token, its log-probability unfiltered) for one uniform number in [0, 1).")},
    {"sampler_uniform", sampler_uniform, METH_VARARGS,
     PyDoc_STR("sampler_uniform(seed, index, position, /)\n--\n\nThe number that GenerationRun draws the token at `position` of sample `index` with.")},
    {NULL, NULL, 0, NULL},
};

int
py_add_generation_run(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &generation_run_spec, NULL);
    const int result = type != NULL ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return result < 0 ? -1 : PyModule_AddFunctions(module, sampler_functions);
}
