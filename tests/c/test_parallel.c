/* Threads: how many, nested, after fork, on busy cores, and the CPU quota of a cgroup read from made-up files.
 * Prints each failure and "N passed, M failed"; exit status 1 if any failed. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/parallel.h"

static char root[] = "/tmp/harmaug-test-XXXXXX";

/* A file below root, its folders made as needed. */
static void
put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof(full), "%s/%s", root, path);
    for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        mkdir(full, 0700);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0) {
        abort();
    }
}

static int
cpus(const char *membership)
{
    char path[512];
    put("membership", membership);
    snprintf(path, sizeof(path), "%s/membership", root);
    return ha_cgroup_cpus(path, root);
}

static void
test_quota(void)
{
    CHECK(ha_cgroup_cpus("/nonexistent", root) == 0, "no membership file");
    CHECK(cpus("0::/a/b\n") == 0, "no cpu.max anywhere");
    put("cpu.max", "max 100000\n");
    put("a/b/cpu.max", "max 100000\n");
    CHECK(cpus("0::/a/b\n") == 0, "max is no limit");
    put("a/cpu.max", "350000 100000\n");
    CHECK(cpus("0::/a/b\n") == 3, "3.5 CPUs of an ancestor, rounded down: got %d", cpus("0::/a/b\n"));
    put("a/b/cpu.max", "150000 100000\n");
    CHECK(cpus("0::/a/b\n") == 1, "the least of a group and its ancestors");
    put("a/b/cpu.max", "5000 100000\n");
    CHECK(cpus("0::/a/b\n") == 1, "less than one CPU is one thread");
    CHECK(cpus("0::/a/c\n") == 3, "a group without the file");
    CHECK(cpus("0::/\n") == 0, "the root group");
    put("a/b/cpu.max", "garbage\n");
    CHECK(cpus("0::/a/b\n") == 3, "a file that is not a quota is none");
    put("a/b/cpu.max", "-1 0\n");
    CHECK(cpus("0::/a/b\n") == 3, "a negative quota is none");
    put("cpu/x/cpu.cfs_quota_us", "200000\n");
    put("cpu/x/cpu.cfs_period_us", "100000\n");
    CHECK(cpus("3:memory:/x\n2:cpu,cpuacct:/x\n") == 2, "version 1");
    put("cpu/x/cpu.cfs_quota_us", "-1\n");
    CHECK(cpus("2:cpuacct,cpu:/x\n2:cpu:/x\n") == 0, "version 1 without a limit");
    CHECK(cpus("no colons\n\n:\n::\n") == 0, "lines that are no membership");
}

static atomic_int inside, most, nested_threads;

static void
body(void *arg, int thread, int n)
{
    atomic_int *calls = arg;
    calls[thread]++;
    inside++;
    ha_parallel_barrier(n);
    most = inside;
    nested_threads = ha_threads_for(1u << 30, 1, 2);
    ha_parallel_barrier(n);
}

static void
test_threads(void)
{
    CHECK(ha_threads_max() >= 1, "threads: %d", ha_threads_max());
    CHECK(ha_threads_for(0, 100, 4) == 1 && ha_threads_for(150, 100, 4) == 1, "little work is serial");
    const int want = ha_openmp_enabled() ? 3 : 1;
    CHECK(ha_threads_for(300, 100, 4) == want, "a grain a thread: %d", ha_threads_for(300, 100, 4));
    CHECK(ha_threads_for(1000, 100, 3) == want, "as many as asked for");
    CHECK(ha_threads_for(1u << 30, 1, 1) == 1, "one when asked for one");
    CHECK(ha_threads_for(1u << 30, 1, 0) == ha_threads_max(), "the default");

    atomic_int calls[8] = {0};
    const int n = ha_threads_for(1u << 20, 1, 2);
    ha_parallel_run(n, body, calls);
    int total = 0, twice = 0;
    for (int i = 0; i < 8; i++) {
        total += calls[i];
        twice += calls[i] > 1;
    }
    CHECK(total == most && total >= 1 && total <= n && twice == 0, "each of %d threads once, all before the barrier: %d, %d", n, total, most);
    CHECK(n == 1 || nested_threads == 1, "nested regions are serial: %d", nested_threads);
    CHECK(ha_thread_index() == 0, "outside a region: %d", ha_thread_index());
}

/* Thread 1 is late by arg milliseconds, as if another program had its core. */
static void
late(void *arg, int thread, int n)
{
    const struct timespec delay = {.tv_nsec = 1000000L * *(int *)arg};
    if (thread == 1) {
        nanosleep(&delay, NULL);
    }
    (void)n;
}

/* Region after region with a late thread, until regions are serial; -1 when they never are. */
static int
regions_until_serial(int delay)
{
    for (int i = 0; i < 20; i++) {
        if (ha_team(2) == 1) {
            return i;
        }
        ha_parallel_run(2, late, &delay);
    }
    return -1;
}

static void
test_busy_cores(void)
{
    if (!ha_openmp_enabled()) {
        CHECK(ha_team(2) == 1, "without OpenMP a team is one thread");
        return;
    }
    ha_parallel_set_adaptive(1);
    CHECK(ha_team(2) == 2 && ha_team(1) == 1, "teams are whole at first");
    const int first = regions_until_serial(5);
    /* one such region does, but on a busy machine the 2 ms pause may be over before it is looked at */
    CHECK(first >= 1, "regions with a late thread make the next serial: %d", first);
    int total = 0, delay = 20;
    ha_parallel_run(2, late, &delay);       /* serial: thread 1 does not exist */
    for (total = 0; ha_team(2) == 1 && total < 1000; total++) {
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
    CHECK(total < 1000, "a new try after a pause: %d", total);
    CHECK(regions_until_serial(5) >= 0, "which fails too");
    ha_parallel_set_adaptive(0);
    CHECK(ha_team(2) == 2 && regions_until_serial(1) == -1, "unless switched off");
}

static void
test_fork(void)
{
    const pid_t pid = fork();
    if (pid == 0) {
        alarm(20);
        atomic_int calls[8] = {0};
        const int n = ha_threads_for(1u << 30, 1, 2);
        ha_parallel_run(n, body, calls);
        _exit(n == 1 && ha_threads_max() == 1 && ha_threads_now() == 1 && ha_forked_serial() ? 0 : 1);
    }
    int status = -1;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "the child of a fork is serial: status %d", status);
}

int
main(void)
{
    if (mkdtemp(root) == NULL) {
        return 2;
    }
    ha_parallel_init();
    ha_parallel_set_adaptive(0);
    test_quota();
    test_threads();
    test_busy_cores();
    test_fork();
    char command[600];
    snprintf(command, sizeof(command), "rm -r '%s'", root);
    CHECK(system(command) == 0, "cannot remove %s", root);
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
