/*
 * The front's arguments (docs/protocol.md 1), as lgss_keyring/front/arguments.py takes them apart.  The kernel and
 * the rule's line have made them, but the callout info of a `user` key is its requestor's own text.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define NOTES "/run/lgss"
enum { MOST_WORDS = 64 };

struct call {
    char **words, **arguments; /* argv; the ten of docs/protocol.md 1, from `create` on */
    const char *realm, *config, *lgssd;
    int64_t started; /* ms of CLOCK_MONOTONIC */
    uint32_t timeout; /* s */
    int32_t key;
    bool is_user, is_machine, brings_credentials;
    char note[256]; /* of a known failure; empty: this request has none that is looked for here */
};

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* The value of at most `most` decimal digits; -1 for anything else. */
static int64_t number(const char *text, size_t length, size_t most)
{
    int64_t value = 0;
    if (length == 0 || length > most || strspn(text, "0123456789") < length)
        return -1;
    for (size_t at = 0; at < length; at++)
        value = value * 10 + (text[at] - '0');
    return value;
}

/* Where field `index` of callout info begins, and its length; NULL if there are not so many. */
static const char *field(const char *callout, int index, size_t *length)
{
    for (; callout && index > 0; index--)
        callout = (callout = strchr(callout, ':')) ? callout + 1 : NULL;
    *length = callout ? strcspn(callout, ":") : 0;
    return callout;
}

/* As Call.failure_note does, for an ordinary user: the path of a note of a known failure. */
static void name_note(struct call *call, const char *uid, size_t length)
{
    bool is_asked_by_others = !call->brings_credentials && strcmp(call->arguments[5], "0");
    int size = snprintf(call->note, sizeof(call->note), NOTES "/failed-%.*s%s%s%s%s", (int)length, uid,
                        *call->realm ? "-" : "", call->realm, *call->config ? "-" : "", call->config);
    bool is_long = size >= (int)sizeof(NOTES) + 200;
    if (call->is_machine || number(uid, length, 10) < 0 || is_asked_by_others || is_long)
        call->note[0] = '\0';
    for (char *at = call->note + sizeof(NOTES); *call->note && *at; at++)
        *at = *at == '/' ? '%' : *at;
}

/* Take the arguments apart; false if anything about them is not for this program to judge. */
static bool parse(int count, char **words, struct call *call)
{
    int at = 1;
    *call = (struct call){ .words = words, .realm = "", .config = "", .lgssd = NOTES "/upcall.sock",
                           .timeout = 30, .started = now() };
    for (; at + 1 < count && words[at][0] == '-'; at += 2) {
        const char *name = words[at], *value = words[at + 1];
        int64_t seconds = number(value, strlen(value), 4);
        if (!strcmp(name, "--lgssd"))
            call->lgssd = value;
        else if (!strcmp(name, "--timeout") && seconds >= 2 && seconds <= 3600)
            call->timeout = (uint32_t)seconds;
        else if (!strcmp(name, "--config") && *value)
            call->config = value;
        else if ((!strcmp(name, "-R") || !strcmp(name, "--realm")) && *value)
            call->realm = value;
        else
            return false;
    }
    if (count > MOST_WORDS || count - at != 10 || strcmp(words[at], "create"))
        return false;
    char **arguments = call->arguments = words + at;
    int64_t serial = number(arguments[1], strlen(arguments[1]), 10);
    call->is_user = !strcmp(arguments[2], "user");
    if (serial <= 0 || serial > INT32_MAX || (!call->is_user && strcmp(arguments[2], "lgssc")) ||
        (call->is_user && strncmp(arguments[3], "lgss:", 5)))
        return false;
    call->key = (int32_t)serial;
    size_t uid_length, flags_length, length = strlen(arguments[5]);
    const char *uid = field(arguments[4], 2, &uid_length);
    if (!uid || !field(arguments[4], 4, &flags_length) || uid_length > 20 ||
        number(arguments[5], length, 10) < 0)
        return false;
    call->is_machine = flags_length > 0;
    call->brings_credentials = !call->is_machine && uid_length == length &&
                               !memcmp(uid, arguments[5], length);
    name_note(call, uid, uid_length);
    return true;
}
