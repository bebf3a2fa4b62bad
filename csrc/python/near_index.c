#include "python/pyharmaug.h"

#include "generation/near_index.h"

typedef struct near_index_object {
    PyObject_HEAD
    ha_near_index *index;
} near_index_object;

static PyObject *
near_index_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"threshold", NULL};
    double threshold = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "d:NearIndex", names, &threshold)) {
        return NULL;
    }
    ha_near_index *index = NULL;
    ha_error err;
    const ha_status status = ha_near_index_new(threshold, &index, &err);
    if (status != HA_OK) {
        return py_raise(PyType_GetModule(type), status, &err);
    }
    near_index_object *self = (near_index_object *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL) {
        ha_near_index_free(index);
        return NULL;
    }
    self->index = index;
    return (PyObject *)self;
}

static void
near_index_dealloc(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    ha_near_index_free(((near_index_object *)obj)->index);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(obj);
    Py_DECREF(type);
}

/* The calls below keep the GIL: they change the index, and take some tens of microseconds. */

static uint32_t *
points_of(PyObject *text, size_t *n)
{
    if (!PyUnicode_Check(text)) {
        PyErr_Format(PyExc_TypeError, "text must be str, got %R", (PyObject *)Py_TYPE(text));
        return NULL;
    }
    *n = (size_t)PyUnicode_GetLength(text);
    return PyUnicode_AsUCS4Copy(text);
}

static PyObject *
near_index_add(PyObject *obj, PyObject *text)
{
    size_t n;
    uint32_t *points = points_of(text, &n);
    if (points == NULL) {
        return NULL;
    }
    ha_error err;
    const ha_status status = ha_near_index_add(((near_index_object *)obj)->index, points, n, &err);
    PyMem_Free(points);
    return status == HA_OK ? Py_NewRef(Py_None) : py_raise(PyType_GetModule(Py_TYPE(obj)), status, &err);
}

static PyObject *
near_index_find(PyObject *obj, PyObject *text)
{
    size_t n, place;
    double similarity;
    uint32_t *points = points_of(text, &n);
    if (points == NULL) {
        return NULL;
    }
    ha_error err;
    const ha_status status = ha_near_index_find(((near_index_object *)obj)->index, points, n, &place, &similarity, &err);
    PyMem_Free(points);
    if (status != HA_OK) {
        return py_raise(PyType_GetModule(Py_TYPE(obj)), status, &err);
    }
    return place == SIZE_MAX ? Py_NewRef(Py_None) : Py_BuildValue("Kd", (unsigned long long)place, similarity);
}

static Py_ssize_t
near_index_length(PyObject *obj)
{
    return (Py_ssize_t)ha_near_index_size(((near_index_object *)obj)->index);
}

static PyMethodDef near_index_methods[] = {
    {"add", near_index_add, METH_O, PyDoc_STR("add(text, /)\n--\n\nIndex a normalised text under the next place, from 0.")},
    {"find", near_index_find, METH_O,
     PyDoc_STR("find(text, /)\n--\n\n(place, similarity) of the nearest text at or over the threshold, the earlier on a tie, or None.")},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(near_index_doc,
"NearIndex(threshold)\n"
"--\n\n"
"Texts by their character 5-grams (see csrc/generation/near_index.h). A ValueError unless threshold is in (0, 1].\n");

static PyType_Slot near_index_slots[] = {
    {Py_tp_new, near_index_new},
    {Py_tp_dealloc, near_index_dealloc},
    {Py_tp_methods, near_index_methods},
    {Py_sq_length, near_index_length},
    {Py_tp_doc, (void *)near_index_doc},
    {0, NULL},
};

static PyType_Spec near_index_spec = {
    .name = "harmaug._C.NearIndex",
    .basicsize = sizeof(near_index_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = near_index_slots,
};

int
py_add_near_index(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &near_index_spec, NULL);
    const int result = type != NULL ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return result;
}
