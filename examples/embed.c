/* A guard inside another program: P(unsafe) of a prompt, and of the same prompt with a response.
 *
 *     make -C csrc BUILD=/tmp/harmaug
 *     cc -Icsrc/include examples/embed.c /tmp/harmaug/libharmaug.a -fopenmp -lm -o embed
 *     ./embed GUARD_FOLDER "a prompt" "a response"
 */
#include <stdio.h>
#include <string.h>

#include "harmaug.h"

int
main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s GUARD_FOLDER PROMPT [RESPONSE]\n", argv[0]);
        return 2;
    }
    if (strcmp(ha_version(), HARMAUG_VERSION) != 0) {
        fprintf(stderr, "built with harmaug %s, linked with %s\n", HARMAUG_VERSION, ha_version());
        return 2;
    }
    ha_guard *guard;
    ha_error err;
    if (ha_guard_open(argv[1], NULL, &guard, &err) != HA_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 2;
    }
    const char *response = argc > 3 ? argv[3] : "";
    const ha_text prompts[2] = {{argv[2], strlen(argv[2])}, {argv[2], strlen(argv[2])}};
    const ha_text responses[2] = {{NULL, 0}, {response, strlen(response)}};
    const size_t n = argc > 3 ? 2 : 1;
    float scores[2];
    ha_score_row rows[2];
    ha_status status = ha_guard_score(guard, prompts, responses, n, NULL, scores, NULL, rows, &err);
    for (size_t i = 0; i < n && status == HA_OK; i++) {
        printf("%.9g %s, %d tokens in %d windows\n", scores[i], scores[i] >= (float)ha_guard_threshold(guard) ? "flagged" : "passed",
               (int)rows[i].n_tokens, (int)rows[i].n_windows);
    }
    if (status != HA_OK) {
        fprintf(stderr, "%s\n", err.message);
    }
    ha_guard_free(guard);
    return status == HA_OK ? 0 : 2;
}
