/* _C.GuardCore: text to P(unsafe), from an Encoder and a Tokenizer. */
#include "python/pyharmaug.h"

#include <stdlib.h>
#include <string.h>

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

/* A Python callable in the encoder's place. */
typedef struct callable_source {
    PyObject *function;
    py_ticker *ticker;
    size_t num_labels;
} callable_source;

/* function(ids, offsets, type_ids) -> (n, num_labels); a new reference to a float32 array of that shape, or NULL with an exception. */
static PyArrayObject *
call_source(const callable_source *source, const ha_batch *rows)
{
    const npy_intp n = (npy_intp)rows->n_rows, shapes[3] = {(npy_intp)rows->offsets[n], n + 1, (npy_intp)rows->offsets[n]};
    const void *data[3] = {rows->ids, rows->offsets, rows->type_ids};
    static const int types[3] = {NPY_INT32, NPY_INT64, NPY_UINT8};
    PyObject *given[3] = {NULL}, *answer = NULL;
    PyArrayObject *array = NULL;
    for (int i = 0; i < 3; i++) {
        if ((given[i] = PyArray_SimpleNew(1, &shapes[i], types[i])) == NULL) {
            goto done;
        }
        memcpy(PyArray_DATA((PyArrayObject *)given[i]), data[i], (size_t)PyArray_NBYTES((PyArrayObject *)given[i]));
    }
    if ((answer = PyObject_CallFunctionObjArgs(source->function, given[0], given[1], given[2], NULL)) == NULL) {
        goto done;
    }
    array = (PyArrayObject *)PyArray_FROM_OTF(answer, NPY_FLOAT32, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (array != NULL && (PyArray_NDIM(array) != 2 || PyArray_DIM(array, 0) != n || PyArray_DIM(array, 1) != (npy_intp)source->num_labels)) {
        PyErr_Format(PyExc_ValueError, "logits must return an array of shape (%zd, %zd)", (Py_ssize_t)n, (Py_ssize_t)source->num_labels);
        Py_CLEAR(array);
    }
done:
    for (int i = 0; i < 3; i++) {
        Py_XDECREF(given[i]);
    }
    Py_XDECREF(answer);
    return array;
}

static ha_status
source_logits(void *arg, const ha_batch *rows, float *logits, ha_error *err)
{
    const callable_source *source = arg;
    PyEval_RestoreThread(source->ticker->thread);
    PyArrayObject *array = call_source(source, rows);
    if (array != NULL) {
        memcpy(logits, PyArray_DATA(array), rows->n_rows * source->num_labels * sizeof(*logits));
    }
    const int failed = array == NULL;
    Py_XDECREF(array);
    source->ticker->thread = PyEval_SaveThread();
    return failed ? ha_fail(err, HA_ERR_VALUE, "the callable raised") : HA_OK;     /* its exception stands */
}

PyDoc_STRVAR(score_doc,
"score(prompts, responses, *, long='windows', first_row=0, temperature=1.0, logits=None)\n"
"--\n\n"
"What ha_guard_score() of include/harmaug.h gives. The GIL is released; Ctrl-C is answered.\n\n"
"Parameters\n"
"----------\n"
"prompts, responses : sequence of str, sequence of (str or None)\n"
"long : {'windows', 'truncate', 'error'}\n"
"first_row : int\n"
"    What messages call the first row.\n"
"logits : callable, optional\n"
"    In the encoder's place: takes ids, offsets and type ids of rows back to back, returns (n, num_labels).\n\n"
"Returns\n"
"-------\n"
"tuple of ndarray\n"
"    P(unsafe), shape (n,), float32; logits, (n, num_labels), float32; and (n, 4), int32: windows, the deciding one, tokens, dropped tokens.\n");

static PyObject *
guard_score(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"prompts", "responses", "long", "first_row", "temperature", "logits", NULL};
    PyObject *prompts_obj, *responses_obj, *prompts_tuple = NULL, *responses_tuple = NULL, *arrays[3] = {NULL}, *function = Py_None, *result = NULL;
    ha_text *prompts = NULL, *responses = NULL;
    const char *mode = "windows";
    Py_ssize_t first = 0;
    ha_score_options options = {0};
    ha_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$sndO:score", names, &prompts_obj, &responses_obj, &mode, &first,
                                     &options.temperature, &function) ||
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
    callable_source source = {function, &ticker, ha_guard_num_labels(handle(self))};
    options.first_row = (size_t)first;
    options.tick = py_tick;
    options.tick_arg = &ticker;
    py_ticker_start(&ticker, Py_None);      /* the tuples hold the texts */
    const ha_status status = ha_guard_score_by(handle(self), prompts, responses, (size_t)n, &options, function != Py_None ? source_logits : NULL,
                                               &source, scores, logits, rows, &err);
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
