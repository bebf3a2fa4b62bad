/* Texts as Python gives them, and what keeps Ctrl-C answered while they are worked on. */
#ifndef HARMAUG_PYTHON_TEXTS_H
#define HARMAUG_PYTHON_TEXTS_H

#include "python/pyharmaug.h"

#include <time.h>

/* The UTF-8 of a str, borrowed from it; 0 with an exception that begins with `what`. */
int py_text(PyObject *obj, const char *what, ha_text *out);

/* A tuple (its own references: another thread may change a list) and the texts in it, malloc'ed. None, NaN and pandas.NA are no text where `optional`.
 * `what` names the argument in messages, `place` ("texts[%zd]") an item of it, counted from `first`. */
PyObject *py_texts(PyObject *obj, const char *what, const char *place, Py_ssize_t first, int optional, ha_text **out);

/* What ticks need: the interpreter is let go of while texts are worked on, and taken again ten times a second. */
typedef struct py_ticker {
    PyThreadState *thread;
    PyObject *progress;         /* borrowed; None: nobody asks */
    struct timespec next;
} py_ticker;

void py_ticker_start(py_ticker *ticker, PyObject *progress);    /* lets go of the interpreter: PyEval_RestoreThread(ticker->thread) takes it again */
/* Signals (Ctrl-C raises here) and progress(texts done); nonzero: an exception is set. */
int py_tick(void *ticker, size_t done);

#endif
