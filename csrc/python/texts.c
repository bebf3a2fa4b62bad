#include "python/texts.h"

#include <math.h>
#include <stdlib.h>

/* `place` may hold one %zd: the row. */
static int
text_of(PyObject *obj, const char *place, Py_ssize_t row, ha_text *out)
{
    char here[64];
    Py_ssize_t length;
    const char *data = PyUnicode_Check(obj) ? PyUnicode_AsUTF8AndSize(obj, &length) : NULL;
    if (data != NULL) {
        *out = (ha_text){data, (size_t)length};
        return 1;
    }
    PyOS_snprintf(here, sizeof(here), place, row);
    if (!PyUnicode_Check(obj)) {
        PyErr_Format(PyExc_TypeError, "%s must be str, got %R", here, (PyObject *)Py_TYPE(obj));
    } else if (PyErr_ExceptionMatches(PyExc_UnicodeError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s holds a lone surrogate, which is no text", here);
    }
    return 0;
}

int
py_text(PyObject *obj, const char *what, ha_text *out)
{
    return text_of(obj, what, 0, out);
}

/* None, or NaN or pandas.NA, with which pandas says it. */
static int
is_none(PyObject *obj)
{
    if (obj == Py_None || PyUnicode_Check(obj)) {
        return obj == Py_None;
    }
    if (PyFloat_Check(obj)) {
        return isnan(PyFloat_AsDouble(obj));
    }
    PyObject *name = PyObject_GetAttrString((PyObject *)Py_TYPE(obj), "__name__");
    const int na = name != NULL && PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "NAType") == 0;
    Py_XDECREF(name);
    PyErr_Clear();
    return na;
}

PyObject *
py_texts(PyObject *obj, const char *what, const char *place, Py_ssize_t first, int optional, ha_text **out)
{
    *out = NULL;
    if (PyUnicode_Check(obj) || PyBytes_Check(obj)) {
        PyErr_Format(PyExc_TypeError, "%s must be a sequence of str, got one %R: write [text]", what, (PyObject *)Py_TYPE(obj));
        return NULL;
    }
    PyObject *tuple = PySequence_Tuple(obj);
    const Py_ssize_t n = tuple != NULL ? PyTuple_Size(tuple) : 0;
    ha_text *texts = tuple != NULL ? calloc((size_t)n + 1, sizeof(*texts)) : NULL;
    if (tuple != NULL && texts == NULL) {
        Py_DECREF(tuple);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PyTuple_GetItem(tuple, i);
        if (!(optional && is_none(item)) && !text_of(item, place, first + i, &texts[i])) {
            free(texts);
            Py_DECREF(tuple);
            return NULL;
        }
    }
    *out = texts;
    return tuple;
}

void
py_ticker_start(py_ticker *t, PyObject *progress)
{
    t->progress = progress;
    clock_gettime(CLOCK_MONOTONIC, &t->next);
    t->thread = PyEval_SaveThread();
}

int
py_tick(void *arg, size_t done)
{
    py_ticker *t = arg;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec < t->next.tv_sec || (now.tv_sec == t->next.tv_sec && now.tv_nsec < t->next.tv_nsec)) {
        return 0;
    }
    t->next = now;
    t->next.tv_nsec += 100000000;
    if (t->next.tv_nsec >= 1000000000) {
        t->next.tv_nsec -= 1000000000;
        t->next.tv_sec++;
    }
    PyEval_RestoreThread(t->thread);
    int failed = PyErr_CheckSignals() < 0;
    if (!failed && t->progress != Py_None) {
        PyObject *answer = PyObject_CallFunction(t->progress, "n", (Py_ssize_t)done);
        failed = answer == NULL;
        Py_XDECREF(answer);
    }
    t->thread = PyEval_SaveThread();
    return failed;
}
