/* Ragged batches as Python gives them. */
#include "python/batch.h"

/* A vector of integers as `type`: other integer types are converted only when every value survives. */
static PyArrayObject *
integers(PyObject *obj, int type, const char *name)
{
    if (PyArray_Check(obj) && PyArray_TYPE((PyArrayObject *)obj) == type && PyArray_NDIM((PyArrayObject *)obj) == 1) {
        return (PyArrayObject *)PyArray_FROM_OTF(obj, type, NPY_ARRAY_IN_ARRAY);
    }
    PyArrayObject *wide = (PyArrayObject *)PyArray_FROM_OTF(obj, NPY_INT64, NPY_ARRAY_IN_ARRAY), *out = NULL;
    if (wide == NULL) {
        return NULL;
    }
    const npy_intp n = PyArray_SIZE(wide);
    const int64_t *values = PyArray_DATA(wide);
    const int64_t low = type == NPY_UINT8 ? 0 : type == NPY_INT32 ? INT32_MIN : INT64_MIN;
    const int64_t high = type == NPY_UINT8 ? UINT8_MAX : type == NPY_INT32 ? INT32_MAX : INT64_MAX;
    if (PyArray_NDIM(wide) != 1) {
        PyErr_Format(PyExc_ValueError, "%s must be a vector, got %d dimensions", name, PyArray_NDIM(wide));
        goto done;
    }
    for (npy_intp i = 0; i < n; i++) {
        if (values[i] < low || values[i] > high) {
            PyErr_Format(PyExc_ValueError, "%s holds %lld", name, (long long)values[i]);
            goto done;
        }
    }
    out = (PyArrayObject *)PyArray_FROM_OTF((PyObject *)wide, type, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
done:
    Py_DECREF(wide);
    return out;
}

/* offsets must rise from 0 to the number of ids before the core may follow them. */
static int
check_offsets(PyArrayObject *offsets, npy_intp total)
{
    const npy_intp n = PyArray_DIM(offsets, 0);
    const int64_t *at = PyArray_DATA(offsets);
    int rising = n >= 1 && at[0] == 0 && at[n - 1] == (int64_t)total;
    for (npy_intp i = 0; rising && i + 1 < n; i++) {
        rising = at[i] <= at[i + 1];
    }
    if (!rising) {
        PyErr_Format(PyExc_ValueError, "offsets must rise from 0 to the number of ids, %zd", (Py_ssize_t)total);
    }
    return rising;
}

int
py_batch_open(PyObject *ids, PyObject *offsets, PyObject *type_ids, py_batch *out)
{
    *out = (py_batch){0};
    if ((out->ids = integers(ids, NPY_INT32, "ids")) == NULL || (out->offsets = integers(offsets, NPY_INT64, "offsets")) == NULL ||
        (type_ids != Py_None && (out->types = integers(type_ids, NPY_UINT8, "type_ids")) == NULL) ||
        !check_offsets(out->offsets, PyArray_DIM(out->ids, 0))) {
        return 0;
    }
    if (out->types != NULL && PyArray_DIM(out->types, 0) != PyArray_DIM(out->ids, 0)) {
        PyErr_Format(PyExc_ValueError, "%zd type_ids for %zd ids", (Py_ssize_t)PyArray_DIM(out->types, 0), (Py_ssize_t)PyArray_DIM(out->ids, 0));
        return 0;
    }
    out->batch = (ha_batch){.n_rows = (size_t)PyArray_DIM(out->offsets, 0) - 1, .offsets = PyArray_DATA(out->offsets),
                            .ids = PyArray_DATA(out->ids), .type_ids = out->types != NULL ? PyArray_DATA(out->types) : NULL};
    return 1;
}

void
py_batch_close(py_batch *batch)
{
    Py_CLEAR(batch->ids);
    Py_CLEAR(batch->offsets);
    Py_CLEAR(batch->types);
}
