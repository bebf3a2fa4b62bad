/* harmaug._C.Linear and matmul: the matrix products of the kernel table on NumPy arrays. */
#include "python/pyharmaug.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

typedef struct linear_object {
    PyObject_HEAD
    const ha_kernels *kernels;      /* the table that packed the weight */
    ha_weight_format format;
    size_t n, k;
    void *packed;
    float *bias;                    /* (n,) or NULL */
} linear_object;

static void
linear_dealloc(PyObject *self)
{
    linear_object *linear = (linear_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    free(linear->packed);
    free(linear->bias);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(linear_doc,
"Linear(weight, bias=None, *, dtype='float32')\n"
"--\n\n"
"x W^T + bias with the weight packed once, for the instruction set then in use.\n\n"
"Parameters\n"
"----------\n"
"weight : array_like, shape (n, k)\n"
"    out_features by in_features.\n"
"bias : array_like, shape (n,), optional\n"
"dtype : 'float32', 'bfloat16', 'int8', 'q8' or 'q4', default 'float32'\n"
"    Storage of the weight. With 'bfloat16' on a CPU with bfloat16 dot products x is rounded to bfloat16 too; sums are float32.\n"
"    With 'int8' x is rounded row by row; sums are integers. 'q8' and 'q4': weight and x in groups of 32 columns, each with a scale.\n\n"
"Raises\n"
"------\n"
"ValueError\n"
"    If a shape does not fit or dtype is unknown.\n\n"
"Examples\n"
"--------\n"
">>> import numpy as np\n"
">>> Linear(np.eye(3), bias=[0, 0, 1])(np.ones((2, 3)))\n"
"array([[1., 1., 2.],\n"
"       [1., 1., 2.]], dtype=float32)\n");

static PyObject *
linear_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"weight", "bias", "dtype", NULL};
    PyObject *weight_obj, *bias_obj = Py_None;
    const char *dtype = "float32";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O$s:Linear", names, &weight_obj, &bias_obj, &dtype)) {
        return NULL;
    }
    static const char *const formats[] = {[HA_WEIGHT_F32] = "float32", [HA_WEIGHT_BF16] = "bfloat16", [HA_WEIGHT_I8] = "int8", [HA_WEIGHT_Q8] = "q8",
                                          [HA_WEIGHT_Q4] = "q4"};
    size_t format = 0;
    while (format < sizeof(formats) / sizeof(formats[0]) && strcmp(dtype, formats[format]) != 0) {
        format++;
    }
    if (format == sizeof(formats) / sizeof(formats[0])) {
        return PyErr_Format(PyExc_ValueError, "Linear: dtype must be 'float32', 'bfloat16', 'int8', 'q8' or 'q4', got '%s'", dtype);
    }
    PyArrayObject *weight = NULL, *bias = NULL;
    linear_object *self = NULL, *result = NULL;
    weight = (PyArrayObject *)PyArray_FROM_OTF(weight_obj, NPY_FLOAT32, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (weight == NULL) {
        goto done;
    }
    if (PyArray_NDIM(weight) != 2) {
        PyErr_Format(PyExc_ValueError, "Linear: weight must have 2 axes, got %d", PyArray_NDIM(weight));
        goto done;
    }
    self = (linear_object *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);    /* zeroed */
    if (self == NULL) {
        goto done;
    }
    self->kernels = ha_kernels_get();
    self->format = (ha_weight_format)format;
    self->n = (size_t)PyArray_DIM(weight, 0);
    self->k = (size_t)PyArray_DIM(weight, 1);
    if (bias_obj != Py_None) {
        bias = (PyArrayObject *)PyArray_FROM_OTF(bias_obj, NPY_FLOAT32, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
        if (bias == NULL) {
            goto done;
        }
        if (PyArray_NDIM(bias) != 1 || (size_t)PyArray_DIM(bias, 0) != self->n) {
            PyErr_Format(PyExc_ValueError, "Linear: bias must have shape (%zu,), the rows of weight", self->n);
            goto done;
        }
        self->bias = malloc((self->n + 1) * sizeof(float));
    }
    self->packed = malloc(self->kernels->linear_packed_bytes(self->format, self->n, self->k) + 1);
    if (self->packed == NULL || (bias != NULL && self->bias == NULL)) {
        PyErr_NoMemory();
        goto done;
    }
    if (bias != NULL) {
        memcpy(self->bias, PyArray_DATA(bias), self->n * sizeof(float));
    }
    const float *w = PyArray_DATA(weight);
    for (size_t first = 0; first < self->n; first += HA_PANEL) {
        const size_t count = self->n - first < HA_PANEL ? self->n - first : HA_PANEL;
        self->kernels->linear_pack(self->packed, self->format, self->n, self->k, first, count, w + first * self->k, self->k);
    }
    result = self;
    self = NULL;
done:
    Py_XDECREF(weight);
    Py_XDECREF(bias);
    Py_XDECREF(self);
    return (PyObject *)result;
}

static PyObject *
linear_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "n_threads", NULL};
    const linear_object *linear = (linear_object *)self;
    PyObject *x_obj;
    int n_threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$i:Linear", names, &x_obj, &n_threads) || (n_threads = py_threads(n_threads)) == 0) {
        return NULL;
    }
    void *scratch = NULL;
    PyArrayObject *y = NULL;
    PyArrayObject *x = (PyArrayObject *)PyArray_FROM_OTF(x_obj, NPY_FLOAT32, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (x == NULL) {
        return NULL;
    }
    if (PyArray_NDIM(x) != 2 || (size_t)PyArray_DIM(x, 1) != linear->k) {
        PyErr_Format(PyExc_ValueError, "Linear: x must have shape (rows, %zu)", linear->k);
        goto done;
    }
    const size_t m = (size_t)PyArray_DIM(x, 0), n = linear->n, k = linear->k;
    npy_intp shape[2] = {(npy_intp)m, (npy_intp)n};
    scratch = malloc(linear->kernels->linear_scratch_bytes(linear->format, m, n, k, n_threads) + 1);
    if (scratch == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    y = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (y == NULL) {
        goto done;
    }
    float *out = PyArray_DATA(y);
    const float *in = PyArray_DATA(x);
    Py_BEGIN_ALLOW_THREADS
    linear->kernels->linear_f32(out, n, in, k, linear->packed, linear->format, linear->bias, HA_ACT_NONE, m, n, k, scratch, n_threads);
    Py_END_ALLOW_THREADS
done:
    free(scratch);
    Py_DECREF(x);
    return (PyObject *)y;
}

static PyType_Slot linear_slots[] = {
    {Py_tp_doc, (void *)linear_doc},
    {Py_tp_new, (void *)linear_new},
    {Py_tp_dealloc, (void *)linear_dealloc},
    {Py_tp_call, (void *)linear_call},
    {0, NULL},
};

static PyType_Spec linear_spec = {
    .name = "harmaug._C.Linear",
    .basicsize = sizeof(linear_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = linear_slots,
};

/* A new reference to a float32 matrix whose strides, of either sign and order, are whole elements. */
static PyArrayObject *
matrix_of(PyObject *obj, const char *name)
{
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_OTF(obj, NPY_FLOAT32, NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED | NPY_ARRAY_FORCECAST);
    if (array != NULL && PyArray_NDIM(array) != 2) {
        PyErr_Format(PyExc_ValueError, "matmul: %s must have 2 axes, got %d", name, PyArray_NDIM(array));
        Py_CLEAR(array);
    }
    if (array != NULL && (PyArray_STRIDE(array, 0) % 4 != 0 || PyArray_STRIDE(array, 1) % 4 != 0)) {
        PyArrayObject *copy = (PyArrayObject *)PyArray_NewCopy(array, NPY_CORDER);
        Py_DECREF(array);
        array = copy;
    }
    return array;
}

PyDoc_STRVAR(matmul_doc,
"matmul(a, b, *, n_threads=0)\n"
"--\n\n"
"The product of two matrices in float32; transposed views are taken as they lie.\n\n"
"Parameters\n"
"----------\n"
"a : array_like, shape (m, k)\n"
"b : array_like, shape (k, n)\n"
"n_threads : int, default 0\n"
"    0 means the library default. The result has the same bits for any number.\n\n"
"Returns\n"
"-------\n"
"ndarray, shape (m, n), float32\n\n"
"Raises\n"
"------\n"
"ValueError\n"
"    If the shapes do not fit.\n");

static PyObject *
matmul(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"a", "b", "n_threads", NULL};
    PyObject *a_obj, *b_obj;
    int n_threads = 0;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$i:matmul", names, &a_obj, &b_obj, &n_threads) ||
        (n_threads = py_threads(n_threads)) == 0) {
        return NULL;
    }
    PyArrayObject *a = NULL, *b = NULL, *c = NULL;
    void *scratch = NULL;
    if ((a = matrix_of(a_obj, "a")) == NULL || (b = matrix_of(b_obj, "b")) == NULL) {
        goto done;
    }
    if (PyArray_DIM(a, 1) != PyArray_DIM(b, 0)) {
        PyErr_Format(PyExc_ValueError, "matmul: a has %zd columns and b %zd rows", (Py_ssize_t)PyArray_DIM(a, 1), (Py_ssize_t)PyArray_DIM(b, 0));
        goto done;
    }
    npy_intp shape[2] = {PyArray_DIM(a, 0), PyArray_DIM(b, 1)};
    const ha_kernels *kernels = ha_kernels_get();
    const size_t m = (size_t)shape[0], n = (size_t)shape[1], k = (size_t)PyArray_DIM(a, 1);
    scratch = malloc(kernels->gemm_scratch_bytes(m, n, k, n_threads) + 1);
    if (scratch == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    c = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (c == NULL) {
        goto done;
    }
    const ha_gemm gemm = {
        .m = m, .n = n, .k = k, .alpha = 1.0f,
        .a = PyArray_DATA(a), .a_row = PyArray_STRIDE(a, 0) / 4, .a_col = PyArray_STRIDE(a, 1) / 4,
        .b = PyArray_DATA(b), .b_row = PyArray_STRIDE(b, 0) / 4, .b_col = PyArray_STRIDE(b, 1) / 4,
        .c = PyArray_DATA(c), .ldc = n,
    };
    Py_BEGIN_ALLOW_THREADS
    kernels->gemm_f32(&gemm, scratch, n_threads);
    Py_END_ALLOW_THREADS
done:
    free(scratch);
    Py_XDECREF(a);
    Py_XDECREF(b);
    return (PyObject *)c;
}

static PyMethodDef methods[] = {
    {"matmul", (PyCFunction)(void (*)(void))matmul, METH_VARARGS | METH_KEYWORDS, matmul_doc},
    {NULL, NULL, 0, NULL},
};

int
py_add_linear(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &linear_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    const int result = PyModule_AddObjectRef(module, "Linear", type);
    Py_DECREF(type);
    return result < 0 ? -1 : PyModule_AddFunctions(module, methods);
}
