#include "python/pyharmaug.h"

#include <stdlib.h>
#include <string.h>

#include "python/batch.h"
#include "python/texts.h"
#include "tokenizer/tokenizer.h"

typedef struct tokenizer_object {
    PyObject_HEAD
    ha_tokenizer *tokenizer;
} tokenizer_object;

static const ha_tokenizer *
handle(PyObject *self)
{
    return ((tokenizer_object *)self)->tokenizer;
}

/* An array (rows,) or (rows, 2) over malloc'ed data, which it takes over, whatever the outcome. */
static void
free_capsule(PyObject *capsule)
{
    free(PyCapsule_GetPointer(capsule, NULL));
}

static PyObject *
array_of(void *data, int ndim, npy_intp rows, int type)
{
    npy_intp dims[2] = {rows, 2};
    PyObject *owner = PyCapsule_New(data, NULL, free_capsule);
    if (owner == NULL) {
        free(data);
        return NULL;
    }
    PyObject *array = PyArray_SimpleNewFromData(ndim, dims, type, data);
    if (array == NULL) {
        Py_DECREF(owner);
    } else if (PyArray_SetBaseObject((PyArrayObject *)array, owner) < 0) {      /* takes the owner, whatever the outcome */
        Py_CLEAR(array);
    }
    return array;
}

static int
parse_truncation(const char *name, ha_truncation *out)
{
    static const struct { const char *name; ha_truncation truncation; } known[] = {
        {"longest_first", HA_TRUNCATE_LONGEST_FIRST}, {"only_first", HA_TRUNCATE_ONLY_FIRST},
        {"only_second", HA_TRUNCATE_ONLY_SECOND}, {"none", HA_TRUNCATE_NONE},
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, name) == 0) {
            *out = known[i].truncation;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "truncation must be 'longest_first', 'only_first', 'only_second' or 'none', got '%s'", name);
    return -1;
}

/* None is SIZE_MAX. */
static int
parse_size(PyObject *obj, const char *name, size_t *out)
{
    *out = SIZE_MAX;
    if (obj == Py_None) {
        return 0;
    }
    const Py_ssize_t value = PyNumber_AsSsize_t(obj, PyExc_ValueError);
    if (value < 0) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_ValueError, "%s must be >= 0, got %zd", name, value);
        }
        return -1;
    }
    *out = (size_t)value;
    return 0;
}

/* (ids, offsets, type_ids, truncated, texts, spans or None); the arrays take over the encoding's memory. */
static PyObject *
encoding_to_python(ha_encoding *e)
{
    const npy_intp n = (npy_intp)e->n_rows, total = (npy_intp)e->offsets[e->n_rows];
    PyObject *parts[6] = {
        array_of(e->ids, 1, total, NPY_INT32), array_of(e->offsets, 1, n + 1, NPY_INT64), array_of(e->type_ids, 1, total, NPY_UINT8),
        array_of(e->truncated, 1, n, NPY_INT32), array_of(e->texts, 1, n, NPY_INT64),
        e->spans != NULL ? array_of(e->spans, 2, total, NPY_INT32) : Py_NewRef(Py_None),
    };
    memset(e, 0, sizeof(*e));
    PyObject *tuple = PyTuple_New(6);
    for (Py_ssize_t i = 0; i < 6; i++) {
        if (tuple == NULL || parts[i] == NULL) {
            Py_XDECREF(parts[i]);
            Py_CLEAR(tuple);
        } else {
            PyTuple_SetItem(tuple, i, parts[i]);    /* takes the reference; can't fail on a new tuple */
        }
    }
    return tuple;
}

static PyObject *
tokenizer_encode_batch(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"texts", "pairs", "add_special_tokens", "max_length", "truncation", "truncate_left", "stride", "spans", "n_threads",
                            "progress", "split_special_tokens", NULL};
    PyObject *texts_obj, *pairs_obj = Py_None, *max_length = Py_None, *stride = Py_None, *progress = Py_None, *texts_tuple = NULL, *pairs_tuple = NULL, *result = NULL;
    const char *truncation = "longest_first";
    ha_encode_options options = {.add_special_tokens = 1};
    ha_text *texts = NULL, *pairs = NULL;
    ha_encoding encoding;
    ha_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O$pOspOpiOp:encode_batch", names, &texts_obj, &pairs_obj, &options.add_special_tokens,
                                     &max_length, &truncation, &options.truncate_left, &stride, &options.spans, &options.n_threads, &progress,
                                     &options.split_special_tokens) || (options.n_threads = py_threads(options.n_threads)) == 0) {
        return NULL;
    }
    if (parse_truncation(truncation, &options.truncation) < 0 || parse_size(max_length, "max_length", &options.max_length) < 0 ||
        parse_size(stride, "stride", &options.stride) < 0) {
        return NULL;
    }
    options.windows = stride != Py_None;
    memset(&encoding, 0, sizeof(encoding));
    texts_tuple = py_texts(texts_obj, "texts", "texts[%zd]", 0, 0, &texts);
    if (texts_tuple == NULL) {
        goto done;
    }
    const Py_ssize_t n = PyTuple_Size(texts_tuple);
    if (pairs_obj != Py_None) {
        pairs_tuple = py_texts(pairs_obj, "pairs", "pairs[%zd]", 0, 1, &pairs);
        if (pairs_tuple == NULL) {
            goto done;
        }
        if (PyTuple_Size(pairs_tuple) != n) {
            PyErr_Format(PyExc_ValueError, "pairs must be as many as texts, %zd, got %zd", n, PyTuple_Size(pairs_tuple));
            goto done;
        }
    }
    const ha_tokenizer *tokenizer = handle(self);
    py_ticker t;
    options.tick = py_tick;
    options.tick_arg = &t;
    py_ticker_start(&t, progress);      /* the tuples hold the texts */
    const ha_status status = ha_tokenizer_encode_batch(tokenizer, texts, pairs, (size_t)n, &options, &encoding, &err);
    PyEval_RestoreThread(t.thread);
    result = PyErr_Occurred() ? NULL : status != HA_OK ? py_raise(PyType_GetModule(Py_TYPE(self)), status, &err) : encoding_to_python(&encoding);
done:
    ha_encoding_free(&encoding);
    free(texts);
    free(pairs);
    Py_XDECREF(texts_tuple);
    Py_XDECREF(pairs_tuple);
    return result;
}

static PyObject *
pad_rows(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ids", "offsets", "type_ids", "columns", "pad_id", "left", "wide", "n_threads", NULL};
    PyObject *ids, *offsets, *type_ids, *arrays[3] = {NULL}, *result = NULL;
    Py_ssize_t columns;
    ha_pad_options options = {0};
    py_batch batch;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOn|$ippi:pad_rows", names, &ids, &offsets, &type_ids, &columns, &options.pad_id, &options.left,
                                     &options.wide, &options.n_threads) || (options.n_threads = py_threads(options.n_threads)) == 0) {
        return NULL;
    }
    if (!py_batch_open(ids, offsets, type_ids, &batch) || batch.types == NULL) {
        goto done;
    }
    const ha_batch b = batch.batch;
    for (size_t i = 0; i < b.n_rows; i++) {
        if (columns < b.offsets[i + 1] - b.offsets[i]) {
            PyErr_Format(PyExc_ValueError, "columns must be at least %lld, the length of row %zu, got %zd", (long long)(b.offsets[i + 1] - b.offsets[i]), i, columns);
            goto done;
        }
    }
    npy_intp dims[2] = {(npy_intp)b.n_rows, columns};
    for (int i = 0; i < 3; i++) {
        if ((arrays[i] = PyArray_ZEROS(2, dims, options.wide ? NPY_INT64 : NPY_INT32, 0)) == NULL) {
            goto done;
        }
    }
    options.columns = (size_t)columns;
    void *out[3] = {PyArray_DATA((PyArrayObject *)arrays[0]), PyArray_DATA((PyArrayObject *)arrays[1]), PyArray_DATA((PyArrayObject *)arrays[2])};
    Py_BEGIN_ALLOW_THREADS
    ha_encoding_pad(b.n_rows, b.offsets, b.ids, b.type_ids, &options, out[0], out[1], out[2]);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("OOO", arrays[0], arrays[1], arrays[2]);
done:
    for (int i = 0; i < 3; i++) {
        Py_XDECREF(arrays[i]);
    }
    py_batch_close(&batch);
    return result;
}

/* A new reference to `obj` as C-contiguous int64; only integers are ids. */
static PyArrayObject *
as_ids(PyObject *obj)
{
    PyObject *any = PyArray_FROM_O(obj);
    if (any == NULL) {
        return NULL;
    }
    if (PyArray_SIZE((PyArrayObject *)any) > 0 && !PyTypeNum_ISINTEGER(PyArray_TYPE((PyArrayObject *)any))) {
        PyErr_SetString(PyExc_TypeError, "decode: ids must be integers");
        Py_DECREF(any);
        return NULL;
    }
    PyObject *ids = PyArray_FROM_OTF(any, NPY_INT64, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    Py_DECREF(any);
    return (PyArrayObject *)ids;
}

static PyObject *
tokenizer_decode(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ids", "skip_special_tokens", NULL};
    PyObject *ids_obj;
    int skip = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:decode", names, &ids_obj, &skip)) {
        return NULL;
    }
    PyArrayObject *ids = as_ids(ids_obj);
    if (ids == NULL) {
        return NULL;
    }
    const npy_intp n = PyArray_SIZE(ids);
    const int64_t *wide = PyArray_DATA(ids);
    int32_t *narrow = malloc(((size_t)n + 1) * sizeof(*narrow));
    char *text = NULL;
    size_t length = 0;
    ha_error err;
    ha_status status = HA_OK;
    PyObject *result = NULL;
    if (narrow == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (npy_intp i = 0; i < n; i++) {
        narrow[i] = wide[i] < 0 || wide[i] > INT32_MAX ? -1 : (int32_t)wide[i];
    }
    const ha_tokenizer *tokenizer = handle(self);
    Py_BEGIN_ALLOW_THREADS
    status = ha_tokenizer_decode(tokenizer, narrow, (size_t)n, skip, &text, &length, &err);
    Py_END_ALLOW_THREADS
    result = status != HA_OK ? py_raise(PyType_GetModule(Py_TYPE(self)), status, &err) : PyUnicode_DecodeUTF8(text, (Py_ssize_t)length, NULL);
done:
    free(text);
    free(narrow);
    Py_DECREF(ids);
    return result;
}

static PyObject *
tokenizer_normalize(PyObject *self, PyObject *obj)
{
    ha_text text;
    char *out = NULL;
    size_t length = 0;
    ha_error err;
    if (!py_text(obj, "text", &text)) {
        return NULL;
    }
    const ha_status status = ha_tokenizer_normalize(handle(self), text, &out, &length, &err);
    if (status != HA_OK) {
        return py_raise(PyType_GetModule(Py_TYPE(self)), status, &err);
    }
    PyObject *result = PyUnicode_DecodeUTF8(out, (Py_ssize_t)length, NULL);
    free(out);
    return result;
}

static PyObject *
tokenizer_pre_tokenize(PyObject *self, PyObject *obj)
{
    ha_text text;
    int32_t *out = NULL;
    size_t n = 0;
    ha_error err;
    if (!py_text(obj, "text", &text)) {
        return NULL;
    }
    const ha_status status = ha_tokenizer_pre_tokenize(handle(self), text, &out, &n, &err);
    if (status != HA_OK) {
        free(out);
        return py_raise(PyType_GetModule(Py_TYPE(self)), status, &err);
    }
    return array_of(out, 2, (npy_intp)n, NPY_INT32);
}

static PyObject *
tokenizer_token_to_id(PyObject *self, PyObject *token)
{
    ha_text text;
    if (!py_text(token, "token", &text)) {
        return NULL;
    }
    const int32_t id = ha_tokenizer_token_to_id(handle(self), text.data, text.length);
    return id >= 0 ? PyLong_FromLong(id) : Py_NewRef(Py_None);
}

/* An index as int32; -1 for what no vocabulary can hold, -2 with an exception. */
static int32_t
id_of(PyObject *obj)
{
    const Py_ssize_t id = PyNumber_AsSsize_t(obj, NULL);
    if (id == -1 && PyErr_Occurred()) {
        return -2;
    }
    return id < 0 || id > INT32_MAX ? -1 : (int32_t)id;
}

static PyObject *
tokenizer_id_to_token(PyObject *self, PyObject *obj)
{
    size_t length;
    const int32_t id = id_of(obj);
    if (id == -2) {
        return NULL;
    }
    const char *text = ha_tokenizer_id_to_token(handle(self), id, &length);
    return text != NULL ? PyUnicode_DecodeUTF8(text, (Py_ssize_t)length, NULL) : Py_NewRef(Py_None);
}

static PyObject *
tokenizer_token_bytes(PyObject *self, PyObject *obj)
{
    size_t length;
    const int32_t id = id_of(obj);
    if (id == -2) {
        return NULL;
    }
    const uint8_t *bytes = ha_tokenizer_token_bytes(handle(self), id, &length);
    return PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)length);
}

static PyObject *
tokenizer_vocab_size(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(ha_tokenizer_vocab_size(handle(self)));
}

static PyObject *
tokenizer_pad_id(PyObject *self, void *unused)
{
    (void)unused;
    const int32_t id = ha_tokenizer_pad_id(handle(self));
    return id >= 0 ? PyLong_FromLong(id) : Py_NewRef(Py_None);
}

int
py_optional_path(PyObject *obj, void *out)
{
    return obj == Py_None ? 1 : PyUnicode_FSConverter(obj, out);
}

static PyObject *
tokenizer_cache_note(PyObject *self, void *closure)
{
    (void)closure;
    const char *note = ha_tokenizer_cache_note(handle(self));
    return PyUnicode_DecodeUTF8(note, (Py_ssize_t)strlen(note), "replace");
}

/* {text: id} as an array whose texts `dict` holds; NULL with an exception. */
static ha_special_token *
special_tokens_of(PyObject *dict, size_t *n)
{
    ha_special_token *tokens = calloc((size_t)PyDict_Size(dict) + 1, sizeof(*tokens));
    PyObject *key, *value;
    Py_ssize_t at = 0;
    *n = 0;
    if (tokens == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    while (PyDict_Next(dict, &at, &key, &value)) {
        ha_text text;
        const Py_ssize_t id = py_text(key, "special_tokens: a key", &text) ? PyNumber_AsSsize_t(value, PyExc_ValueError) : -1;
        if (id < 0) {
            if (!PyErr_Occurred()) {
                PyErr_Format(PyExc_ValueError, "special_tokens: the id of %R must be >= 0, got %zd", key, id);
            }
            free(tokens);
            return NULL;
        }
        tokens[(*n)++] = (ha_special_token){text.data, text.length, (uint64_t)id};
    }
    return tokens;
}

static PyObject *
tokenizer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "reference", "pattern", "special_tokens", "cache", NULL};
    PyObject *path = NULL, *given = NULL, *copy = NULL, *cache = NULL;
    const char *reference = "tokenizers";
    ha_open_options options = {0};
    ha_special_token *tokens = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$szO!O&:Tokenizer", names, PyUnicode_FSConverter, &path, &reference, &options.pattern,
                                     &PyDict_Type, &given, py_optional_path, &cache)) {
        return NULL;
    }
    options.reference = strcmp(reference, "sentencepiece") == 0 ? HA_REFERENCE_SENTENCEPIECE : HA_REFERENCE_TOKENIZERS;
    if (options.reference == HA_REFERENCE_TOKENIZERS && strcmp(reference, "tokenizers") != 0) {
        Py_DECREF(path);
        Py_XDECREF(cache);
        return PyErr_Format(PyExc_ValueError, "reference must be 'tokenizers' or 'sentencepiece', got '%s'", reference);
    }
    if (given != NULL && ((copy = PyDict_Copy(given)) == NULL || (tokens = special_tokens_of(copy, &options.n_special_tokens)) == NULL)) {
        Py_XDECREF(copy);
        Py_XDECREF(cache);
        Py_DECREF(path);
        return NULL;
    }
    options.special_tokens = tokens;
    const char *bytes = PyBytes_AsString(path);
    options.cache_folder = cache != NULL ? PyBytes_AsString(cache) : NULL;
    ha_tokenizer *tokenizer = NULL;
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ha_tokenizer_open(bytes, &options, &tokenizer, &err);
    Py_END_ALLOW_THREADS
    free(tokens);
    Py_XDECREF(copy);
    Py_DECREF(path);
    Py_XDECREF(cache);
    if (status != HA_OK) {
        return py_raise(PyType_GetModule(type), status, &err);
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = alloc(type, 0);
    if (self == NULL) {
        ha_tokenizer_free(tokenizer);
        return NULL;
    }
    ((tokenizer_object *)self)->tokenizer = tokenizer;
    return self;
}

static void
tokenizer_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ha_tokenizer_free(((tokenizer_object *)self)->tokenizer);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

#define METHOD(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef tokenizer_methods[] = {
    {"encode_batch", METHOD(tokenizer_encode_batch), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("encode_batch(texts, pairs=None, *, add_special_tokens=True, max_length=None, truncation='longest_first',\n"
               "             truncate_left=False, stride=None, spans=False, n_threads=0, progress=None, split_special_tokens=False)\n--\n\n"
               "(ids, offsets, type_ids, truncated, texts, spans or None) of a batch; see harmaug.Tokenizer.encode_batch. Ten times a second or less,\n"
               "progress is called with the number of texts done.")},
    {"decode", METHOD(tokenizer_decode), METH_VARARGS | METH_KEYWORDS, PyDoc_STR("decode(ids, skip_special_tokens=True)\n--\n\nText of ids.")},
    {"normalize", tokenizer_normalize, METH_O,
     PyDoc_STR("normalize(text, /)\n--\n\nWhat the normalizer alone makes of a text.")},
    {"pre_tokenize", tokenizer_pre_tokenize, METH_O,
     PyDoc_STR("pre_tokenize(text, /)\n--\n\nint32 (n, 2): the pieces into which the pre-tokenizer alone cuts a text, in code points.")},
    {"token_to_id", tokenizer_token_to_id, METH_O, PyDoc_STR("token_to_id(token, /)\n--\n\nThe id of a token, or None.")},
    {"id_to_token", tokenizer_id_to_token, METH_O, PyDoc_STR("id_to_token(id, /)\n--\n\nThe token of an id, or None.")},
    {"token_bytes", tokenizer_token_bytes, METH_O,
     PyDoc_STR("token_bytes(id, /)\n--\n\nThe bytes that a token decodes to on its own; b'' for special tokens.")},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef tokenizer_functions[] = {
    {"pad_rows", METHOD(pad_rows), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("pad_rows(ids, offsets, type_ids, columns, *, pad_id=0, left=False, wide=False, n_threads=0)\n--\n\n"
               "(ids, attention mask, type ids) of ragged rows, each int32 or, wide, int64 (rows, columns).")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef tokenizer_getters[] = {
    {"cache_note", tokenizer_cache_note, NULL, PyDoc_STR("Why a file in the cache was not used or could not be written; empty when there is nothing to tell."), NULL},
    {"vocab_size", tokenizer_vocab_size, NULL, PyDoc_STR("Ids are below it."), NULL},
    {"pad_id", tokenizer_pad_id, NULL, PyDoc_STR("The id that the file pads with, or None."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(tokenizer_doc,
"Tokenizer(path, *, reference='tokenizers', pattern=None, special_tokens={}, cache=None)\n"
"--\n\n"
"The C tokenizer that harmaug.Tokenizer wraps.\n\n"
"Parameters\n"
"----------\n"
"path : str or path-like\n"
"    A folder with tokenizer.json, a sentencepiece model, vocab.txt or vocab.json and merges.txt, one of these files, a .gguf, or with a\n"
"    pattern a .tiktoken.\n"
"reference : {'tokenizers', 'sentencepiece'}\n"
"    Whose ids a sentencepiece model gives.\n"
"pattern : str, optional\n"
"    How a .tiktoken file's text is cut.\n"
"special_tokens : dict, optional\n"
"    Ids of a .tiktoken file's special tokens.\n"
"cache : str or path-like, optional\n"
"    A folder where the large tables of a tokenizer.json are kept between runs. Default: nowhere.\n\n"
"Raises\n"
"------\n"
"OSError\n"
"    If it can't be opened.\n"
"FormatError\n"
"    If it breaks its format, or names a component that is not honoured exactly.\n");

static PyType_Slot tokenizer_slots[] = {
    {Py_tp_new, tokenizer_new},
    {Py_tp_dealloc, tokenizer_dealloc},
    {Py_tp_methods, tokenizer_methods},
    {Py_tp_getset, tokenizer_getters},
    {Py_tp_doc, (void *)tokenizer_doc},
    {0, NULL},
};

static PyType_Spec tokenizer_spec = {
    .name = "harmaug._C.Tokenizer",
    .basicsize = sizeof(tokenizer_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tokenizer_slots,
};

int
py_add_tokenizer(PyObject *module)
{
    module_state *state = (module_state *)PyModule_GetState(module);
    state->Tokenizer = PyType_FromModuleAndSpec(module, &tokenizer_spec, NULL);
    if (state->Tokenizer == NULL || PyModule_AddType(module, (PyTypeObject *)state->Tokenizer) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, tokenizer_functions);
}

const struct ha_tokenizer *
py_tokenizer(PyObject *module, PyObject *obj)
{
    const module_state *state = (module_state *)PyModule_GetState(module);
    if (!PyObject_TypeCheck(obj, (PyTypeObject *)state->Tokenizer)) {
        PyErr_Format(PyExc_TypeError, "tokenizer must be a harmaug._C.Tokenizer, got %R", (PyObject *)Py_TYPE(obj));
        return NULL;
    }
    return handle(obj);
}
