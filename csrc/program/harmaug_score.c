/* harmaug-score: JSONL in, the same rows with score and flagged out, as `harmaug score` of the Python package writes them.
 * Exit status: 0 done; 2 wrong usage or bad input (one line on standard error); 130 interrupted. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "program/rows.h"

#define NAME "harmaug-score"
#define BATCH 32        /* rows scored together; changes no score */

static const char usage[] =
    "usage: " NAME " [options] MODEL_DIR [FILE|-]\n\n"
    "Scores the rows of a JSONL file, or of standard input: each comes out with score, P(unsafe), and flagged.\n"
    "A row is an object with a prompt and, where there is one, a response.\n\n"
    "  --threshold N     flagged from here on (default: the guard's own, else 0.5)\n"
    "  --max-length N    tokens read at once (default: the tokenizer's, else the model's)\n"
    "  --long MODE       of longer rows: windows (default), truncate, error\n"
    "  --dtype NAME      storage of the weights (default: float32)\n"
    "  --threads N       (default: what the machine offers)\n"
    "  --version, --help\n\n"
    "HARMAUG_CPU_ISA names another instruction set than the best one.\n";

static volatile sig_atomic_t interrupted;

static void
on_interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

static int
tick(void *arg, size_t rows_done)
{
    (void)arg, (void)rows_done;
    return interrupted;
}

/* Says it on one line, whatever a file's name holds, and returns the exit status. */
static int
fail(const char *message)
{
    fputs(NAME ": ", stderr);
    for (; *message != '\0'; message++) {
        putc((unsigned char)*message < 0x20 ? ' ' : *message, stderr);
    }
    putc('\n', stderr);
    return 2;
}

/* -- options -- */

typedef struct settings {
    const char *folder, *file;
    double threshold;       /* < 0: the guard's */
    ha_guard_options guard;
    ha_score_options score;
    int done;               /* --help or --version was all */
} settings;

static int
whole_number(const char *text, size_t most, size_t *out)
{
    char *end;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    *out = (size_t)value;
    return text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0 && value >= 1 && value <= most;
}

/* One option with its value; what is wrong with it, or NULL. */
static const char *
take_option(settings *s, const char *name, const char *value)
{
    static const char *const long_names[] = {"windows", "truncate", "error"};
    size_t number;
    char *end;
    if (strcmp(name, "threshold") == 0) {
        s->threshold = strtod(value, &end);
        return value[0] != '\0' && *end == '\0' && s->threshold >= 0 && s->threshold <= 1 ? NULL : "must be in [0, 1]";
    }
    if (strcmp(name, "max-length") == 0) {
        return whole_number(value, SIZE_MAX, &s->guard.max_length) ? NULL : "must be a number >= 1";
    }
    if (strcmp(name, "threads") == 0) {
        const int ok = whole_number(value, 1024, &number);
        s->score.n_threads = (int)number;
        return ok ? NULL : "must be from 1 to 1024";
    }
    if (strcmp(name, "dtype") == 0) {
        s->guard.dtype = value;
        return NULL;
    }
    for (int i = 0; i < 3; i++) {
        if (strcmp(value, long_names[i]) == 0) {
            s->score.long_rows = (ha_long)i;
            return NULL;
        }
    }
    return "must be windows, truncate or error";
}

static int
is_option(const char *name)
{
    static const char *const known[] = {"threshold", "max-length", "long", "dtype", "threads"};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(name, known[i]) == 0) {
            return 1;
        }
    }
    return 0;
}

/* 0, or 2 after saying what is wrong. */
static int
take_arguments(int argc, char **argv, settings *s)
{
    char message[400];
    int only_names = 0;
    for (int i = 1; i < argc; i++) {
        if (only_names || argv[i][0] != '-' || argv[i][1] == '\0') {
            const char **to = s->folder == NULL ? &s->folder : s->file == NULL ? &s->file : NULL;
            if (to == NULL) {
                return fail("more than one FILE; see " NAME " --help");
            }
            *to = argv[i];
            continue;
        }
        if (strcmp(argv[i], "--") == 0) {
            only_names = 1;
            continue;
        }
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--version") == 0) {
            s->done = 1;
            if (argv[i][2] == 'v') {
                printf(NAME " %s (%s)\n", ha_version(), ha_cpu_isa());
            } else {
                fputs(usage, stdout);
            }
            return fflush(stdout) == 0 ? 0 : 2;
        }
        char name[32] = "";
        const char *given = argv[i] + (strncmp(argv[i], "--", 2) == 0 ? 2 : 0), *value = strchr(given, '=');
        const size_t n = value != NULL ? (size_t)(value - given) : strlen(given);
        memcpy(name, given, n < sizeof(name) ? n : 0);
        if (!is_option(name)) {
            snprintf(message, sizeof(message), "unknown option %.200s; see " NAME " --help", argv[i]);
            return fail(message);
        }
        value = value != NULL ? value + 1 : i + 1 < argc ? argv[++i] : NULL;
        const char *wrong = value != NULL ? take_option(s, name, value) : "needs a value";
        if (wrong != NULL) {
            snprintf(message, sizeof(message), "--%s %s%s%.200s", name, wrong, value != NULL ? ", got " : "", value != NULL ? value : "");
            return fail(message);
        }
    }
    return s->folder != NULL ? 0 : fail("MODEL_DIR is missing; see " NAME " --help");
}

/* -- rows -- */

typedef struct job {
    const settings *settings;
    ha_guard *guard;
    ha_rows input;
    ha_row rows[BATCH];
    float threshold;
    size_t n_done;
} job;

/* Scores the first n rows of the batch and writes them. One that can't be scored is named, and the rows before it are written. */
static int
score_batch(job *j, size_t n)
{
    ha_text prompts[BATCH], responses[BATCH];
    float scores[BATCH];
    ha_score_options options = j->settings->score;
    ha_error err;
    char message[1000];
    size_t n_scored = n;
    int status = 0;
    for (size_t i = 0; i < n; i++) {
        prompts[i] = j->rows[i].prompt;
        responses[i] = j->rows[i].response;
    }
    options.first_row = j->n_done;
    if (ha_guard_score(j->guard, prompts, responses, n, &options, scores, NULL, NULL, &err) != HA_OK) {
        for (n_scored = 0; n_scored < n && !interrupted; n_scored++) {
            options.first_row = j->n_done + n_scored;
            if (ha_guard_score(j->guard, prompts + n_scored, responses + n_scored, 1, &options, scores + n_scored, NULL, NULL, &err) != HA_OK) {
                break;
            }
        }
        status = n_scored < n ? 2 : 0;
    }
    if (interrupted) {
        return 130;
    }
    for (size_t i = 0; i < n_scored; i++) {
        ha_row_write(&j->rows[i], scores[i], scores[i] >= j->threshold, stdout);
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        if (errno == EPIPE) {       /* the reader had enough */
            return -1;
        }
        snprintf(message, sizeof(message), "standard output: %s", strerror(errno));
        return fail(message);
    }
    if (status != 0) {
        snprintf(message, sizeof(message), "%.300s, line %zu: %s", j->input.name, j->rows[n_scored].line, err.message);
        return fail(message);
    }
    j->n_done += n;
    return 0;
}

static int
score_all(job *j)
{
    int status = 0, found = 1;
    ha_error err;
    while (status == 0 && found) {
        ha_status read = HA_OK;
        size_t n = 0;
        while (n < BATCH && (read = ha_rows_next(&j->input, &interrupted, &j->rows[n], &found, &err)) == HA_OK && found) {
            n++;
        }
        status = interrupted ? 130 : n > 0 ? score_batch(j, n) : 0;
        if (status == 0 && read != HA_OK) {
            status = fail(err.message);
        }
    }
    if (status == 0 && j->n_done == 0) {
        snprintf(err.message, sizeof(err.message), "%.400s: the set is empty, no rows", j->input.name);
        status = fail(err.message);
    }
    if (status == 130) {
        fputs(NAME ": interrupted\n", stderr);
    }
    return status < 0 ? 0 : status;
}

int
main(int argc, char **argv)
{
    settings s = {.threshold = -1, .score.tick = tick};
    static job j;
    ha_error err;
    const char *isa = getenv("HARMAUG_CPU_ISA");
    if (ha_cpu_select(isa != NULL && isa[0] != '\0' ? isa : NULL, &err) != HA_OK) {
        return fail(err.message);
    }
    int status = take_arguments(argc, argv, &s);
    if (status != 0 || s.done) {
        return status;
    }
    const int from_stdin = s.file == NULL || strcmp(s.file, "-") == 0;
    j.settings = &s;
    j.input = (ha_rows){.file = from_stdin ? stdin : fopen(s.file, "rb"), .name = from_stdin ? "standard input" : s.file};
    if (j.input.file == NULL) {
        snprintf(err.message, sizeof(err.message), "%.400s: %s", s.file, strerror(errno));
        return fail(err.message);
    }
    struct sigaction action = {.sa_handler = on_interrupt};
    sigemptyset(&action.sa_mask);       /* and no SA_RESTART: a read that waits returns */
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (ha_guard_open(s.folder, &s.guard, &j.guard, &err) != HA_OK) {
        status = fail(err.message);
    } else {
        if (s.threshold < 0 && !ha_guard_threshold_fits(j.guard, s.score.long_rows, &err)) {
            fprintf(stderr, NAME ": warning: %s\n", err.message);
        }
        j.threshold = (float)(s.threshold < 0 ? ha_guard_threshold(j.guard) : s.threshold);
        status = score_all(&j);
    }
    for (size_t i = 0; i < BATCH; i++) {
        ha_row_free(&j.rows[i]);
    }
    ha_guard_free(j.guard);
    if (!from_stdin) {
        fclose(j.input.file);
    }
    return status;
}
