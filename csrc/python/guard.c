/* _C.GuardCore: text to P(unsafe), from an Encoder and a Tokenizer. */
#include "python/pyharmaug.h"

#include <stdlib.h>

#include "guard/guard.h"
#include "python/texts.h"

typedef struct guard_object {
    PyObject_HEAD
    ha_guard *guard;
    PyObject *encoder, *tokenizer;      /* whose insides the guard borrows */
    int n_threads;
} guard_object;

static const ha_guard *
handle(PyObject *self)
{
    return ((guard_object *)self)->guard;
}

/* The labels as C strings, borrowed from the tuple; NULL with an exception. */
static const char **
labels_of(PyObject *tuple)
{
    const Py_ssize_t n = PyTuple_Size(tuple);
    const char **labels = malloc(((size_t)n + 1) * sizeof(*labels));
    for (Py_ssize_t i = 0; labels != NULL && i < n; i++) {
        labels[i] = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(tuple, i), NULL);
        if (labels[i] == NULL) {
            free(labels);
            return NULL;
        }
    }
    return labels != NULL ? labels : (const char **)PyErr_NoMemory();
}

static PyObject *
guard_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"encoder", "tokenizer", "name", "tokenizer_folder", "labels", "max_length", NULL};
    PyObject *module = PyType_GetModule(type), *encoder, *tokenizer, *name = NULL, *folder = NULL, *labels_obj = Py_None, *labels_tuple = NULL;
    Py_ssize_t max_length = 0;
    const char **labels = NULL;
    guard_object *self = NULL;
    ha_guard_parts parts = {0};
    ha_error err;
    int n_threads;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$O&O&On:GuardCore", names, &encoder, &tokenizer, PyUnicode_FSConverter, &name, PyUnicode_FSConverter,
                                     &folder, &labels_obj, &max_length)) {
        goto done;
    }
    if (name == NULL || folder == NULL) {
        PyErr_SetString(PyExc_TypeError, "GuardCore: name and tokenizer_folder must be given");
        goto done;
    }
    if ((parts.encoder = py_encoder(module, encoder, &n_threads)) == NULL || (parts.tokenizer = py_tokenizer(module, tokenizer)) == NULL) {
        goto done;
    }
    if (labels_obj != Py_None) {
        if ((labels_tuple = PySequence_Tuple(labels_obj)) == NULL || (labels = labels_of(labels_tuple)) == NULL) {
            goto done;
        }
        if ((size_t)PyTuple_Size(labels_tuple) != ha_encoder_config_of(parts.encoder)->num_labels) {
            PyErr_Format(PyExc_ValueError, "labels must be as many as the model's, %zd, got %zd",
                         (Py_ssize_t)ha_encoder_config_of(parts.encoder)->num_labels, PyTuple_Size(labels_tuple));
            goto done;
        }
    }
    if (max_length < 0) {
        PyErr_Format(PyExc_ValueError, "max_length must be >= 0, got %zd", max_length);
        goto done;
    }
    parts.name = PyBytes_AsString(name);
    parts.tokenizer_folder = PyBytes_AsString(folder);
    parts.labels = labels;
    parts.max_length = (size_t)max_length;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    self = (guard_object *)alloc(type, 0);
    if (self == NULL) {
        goto done;
    }
    const ha_status status = ha_guard_compose(&parts, &self->guard, &err);
    self->n_threads = n_threads;
    self->encoder = Py_NewRef(encoder);
    self->tokenizer = Py_NewRef(tokenizer);
    if (status != HA_OK) {
        py_raise(module, status, &err);
        Py_CLEAR(self);
    }
done:
    free(labels);
    Py_XDECREF(labels_tuple);
    Py_XDECREF(name);
    Py_XDECREF(folder);
    return (PyObject *)self;
}

static void
guard_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    guard_object *guard = (guard_object *)self;
    ha_guard_free(guard->guard);
    Py_XDECREF(guard->encoder);
    Py_XDECREF(guard->tokenizer);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(score_doc,
"score(prompts, responses, *, long='windows', first_row=0, temperature=1.0)\n"
"--\n\n"
"What ha_guard_score() of include/harmaug.h gives. The GIL is released; Ctrl-C is answered.\n\n"
"Parameters\n"
"----------\n"
"prompts, responses : sequence of str, sequence of (str or None)\n"
"long : {'windows', 'truncate', 'error'}\n"
"first_row : int\n"
"    What messages call the first row.\n\n"
"Returns\n"
"-------\n"
"tuple of ndarray\n"
"    P(unsafe), shape (n,), float32; logits, (n, num_labels), float32; and (n, 4), int32: windows, the deciding one, tokens, dropped tokens.\n");

static PyObject *
guard_score(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"prompts", "responses", "long", "first_row", "temperature", NULL};
    PyObject *prompts_obj, *responses_obj, *prompts_tuple = NULL, *responses_tuple = NULL, *arrays[3] = {NULL}, *result = NULL;
    ha_text *prompts = NULL, *responses = NULL;
    const char *mode = "windows";
    Py_ssize_t first = 0;
    ha_score_options options = {0};
    ha_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$snd:score", names, &prompts_obj, &responses_obj, &mode, &first,
                                     &options.temperature) ||
        (options.n_threads = py_threads(((guard_object *)self)->n_threads)) == 0) {
        return NULL;
    }
    if (!ha_long_named(mode, &options.long_rows)) {
        PyErr_Format(PyExc_ValueError, "long must be one of windows, truncate, error, got '%s'", mode);
        return NULL;
    }
    if ((prompts_tuple = py_texts(prompts_obj, "prompts", "row %zd: the prompt", first, 0, &prompts)) == NULL ||
        (responses_tuple = py_texts(responses_obj, "responses", "row %zd: the response", first, 1, &responses)) == NULL) {
        goto done;
    }
    const Py_ssize_t n = PyTuple_Size(prompts_tuple);
    if (PyTuple_Size(responses_tuple) != n) {
        PyErr_Format(PyExc_ValueError, "%zd prompts but %zd responses", n, PyTuple_Size(responses_tuple));
        goto done;
    }
    npy_intp dims[3][2] = {{n, 0}, {n, (npy_intp)ha_guard_num_labels(handle(self))}, {n, 4}};
    for (int i = 0; i < 3; i++) {
        if ((arrays[i] = PyArray_ZEROS(i > 0 ? 2 : 1, dims[i], i < 2 ? NPY_FLOAT32 : NPY_INT32, 0)) == NULL) {
            goto done;
        }
    }
    float *scores = PyArray_DATA((PyArrayObject *)arrays[0]), *logits = PyArray_DATA((PyArrayObject *)arrays[1]);
    ha_score_row *rows = PyArray_DATA((PyArrayObject *)arrays[2]);
    py_ticker ticker;
    options.first_row = (size_t)first;
    options.tick = py_tick;
    options.tick_arg = &ticker;
    py_ticker_start(&ticker, Py_None);      /* the tuples hold the texts */
    const ha_status status = ha_guard_score(handle(self), prompts, responses, (size_t)n, &options, scores, logits, rows, &err);
    PyEval_RestoreThread(ticker.thread);
    if (!PyErr_Occurred()) {
        result = status != HA_OK ? py_raise(PyType_GetModule(Py_TYPE(self)), status, &err) : PyTuple_Pack(3, arrays[0], arrays[1], arrays[2]);
    }
done:
    for (int i = 0; i < 3; i++) {
        Py_XDECREF(arrays[i]);
    }
    free(prompts);
    free(responses);
    Py_XDECREF(prompts_tuple);
    Py_XDECREF(responses_tuple);
    return result;
}

static PyObject *
guard_unsafe_index(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(ha_guard_unsafe_index(handle(self)));
}

static PyObject *
guard_max_length(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(ha_guard_max_length(handle(self)));
}

static PyObject *
guard_call_tokens(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(ha_guard_call_tokens(handle(self)));
}

static PyMethodDef guard_methods[] = {
    {"score", (PyCFunction)(void (*)(void))guard_score, METH_VARARGS | METH_KEYWORDS, score_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef guard_getters[] = {
    {"unsafe_index", guard_unsafe_index, NULL, PyDoc_STR("The label that means unsafe."), NULL},
    {"max_length", guard_max_length, NULL, PyDoc_STR("Tokens read at once."), NULL},
    {"call_tokens", guard_call_tokens, NULL, PyDoc_STR("Tokens that a call of the encoder should hold so that it takes about a second."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(guard_doc,
"GuardCore(encoder, tokenizer, *, name, tokenizer_folder, labels=None, max_length=0)\n"
"--\n\n"
"What turns text into P(unsafe): the code that a C program has as ha_guard.\n\n"
"Parameters\n"
"----------\n"
"encoder : Encoder\n"
"tokenizer : Tokenizer\n"
"name : str or path-like\n"
"    What messages call the guard.\n"
"tokenizer_folder : str or path-like\n"
"    Where tokenizer_config.json may lie.\n"
"labels : sequence of str, optional\n"
"    The names of id2label, '' where it has none.\n"
"max_length : int, default 0\n"
"    0: model_max_length of tokenizer_config.json, else max_position_embeddings.\n");

static PyType_Slot guard_slots[] = {
    {Py_tp_new, guard_new},
    {Py_tp_dealloc, guard_dealloc},
    {Py_tp_methods, guard_methods},
    {Py_tp_getset, guard_getters},
    {Py_tp_doc, (void *)guard_doc},
    {0, NULL},
};

static PyType_Spec guard_spec = {
    .name = "harmaug._C.GuardCore",
    .basicsize = sizeof(guard_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = guard_slots,
};

int
py_add_guard(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &guard_spec, NULL);
    const int status = type != NULL ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return status;
}
