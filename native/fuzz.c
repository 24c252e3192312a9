/*
 * Random arguments and random messages for the native front's parsers, built with AddressSanitizer and UBSan, which
 * end the program at the first wrong access:   fuzz SECONDS [SEED]
 *
 * Half of the inputs are good ones with a few bytes changed, as random bytes get no further than the first check.
 * Every text and message has a block of its own on the heap, of its exact size.
 */
#define main front_main
#include "lgss_keyring.c"
#undef main
#include <stdlib.h>

static uint64_t state;

static uint32_t below(uint32_t limit)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift64 */
    return (uint32_t)(state >> 32) % limit;
}

static void require(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "fuzz: %s\n", what);
        abort();
    }
}

/* A copy with some bytes changed, cut off or put in, and a NUL behind it. */
static char *changed(const char *text, size_t *size)
{
    static const char *const pieces[] = { ":", "-", "0", "lgss:", "/", "%s%n", "2147483648", "99999999999", "\xff",
                                          "", "rmo", "::::", "--config", "create", "user" };
    size_t room = *size + (below(50) ? 300 : 9000);
    char *copy = malloc(room);
    memcpy(copy, text, *size);
    for (uint32_t left = below(4); left; left--) {
        size_t at = below((uint32_t)*size + 1);
        const char *piece = pieces[below(sizeof(pieces) / sizeof(*pieces))];
        size_t length = strlen(piece), times = below(20) ? 1 : below(3000);
        if (below(2)) {
            for (; times && *size + length < room; times--, *size += length) {
                memmove(copy + at + length, copy + at, *size - at);
                memcpy(copy + at, piece, length);
            }
        } else if (below(4) == 0) {
            *size = at;
        } else if (at < *size) {
            copy[at] = (char)below(256);
        }
    }
    char *exact = malloc(*size + 1);
    memcpy(exact, copy, *size);
    exact[*size] = '\0';
    free(copy);
    return exact;
}

static void try_arguments(void)
{
    static const char *const good[] = { "lgss_keyring", "-R", "A.REALM", "--config", "/etc/lgss.toml", "--timeout",
        "30", "--lgssd", "/run/lgss/upcall.sock", "create", "1234567", "user", "lgss:x",
        "42:krb5:1000:1000::i:1:0x20000c0a80105:lustre-MDT0000-mdc:0x20000c0a80106:3121:b8ae9dc4-7c1d", "1000",
        "1000", "11", "22", "33" };
    enum { GOOD = sizeof(good) / sizeof(*good) };
    char *words[GOOD + 150], *out = malloc(UPCALL_LIMIT);
    int count = 0;
    uint32_t repeated = below(30) ? GOOD : 1 + below(8), pairs = below(30) ? 0 : below(40);
    struct call call;
    for (uint32_t at = 0; at < GOOD; at++) {
        uint32_t times = at && below(60) == 0 ? 0 : at == repeated ? 1 + below(60) : 1;
        for (; times; times--) {
            size_t size = strlen(good[at]);
            words[count++] = below(8) ? strdup(good[at]) : changed(good[at], &size);
        }
        for (; at == 0 && pairs; pairs--) { /* more good options than there is room for */
            words[count++] = strdup("--timeout");
            words[count++] = strdup("30");
        }
    }
    words[count] = NULL;
    if (parse(count, words, &call)) {
        const char *texts[12] = { call.realm, call.config };
        require(count <= MOST_WORDS && call.arguments + 10 == words + count, "the words were counted wrongly");
        require(call.key > 0 && call.timeout >= 2 && call.timeout <= 3600, "a number is out of range");
        require(strlen(call.note) < sizeof(NOTES) + 200, "the note's name is too long");
        require(!*call.note || !strchr(call.note + sizeof(NOTES), '/'), "the note is not in its folder");
        memcpy(texts + 2, call.arguments, 10 * sizeof(*texts));
        size_t size = pack_upcall(out, 1, call.timeout, texts, 12);
        require(size <= UPCALL_LIMIT && (!size || !out[size - 1]), "the request has no end");
    }
    while (count)
        free(words[--count]);
    free(out);
}

static void try_message(void)
{
    static const char token[] = "T\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0\5\0\0\0/sys/init_channel\0lustre-MDT0000\0token";
    static const char answer[] = "A\0\0\0\0\36\0\0\0\0\0\0\0payload";
    bool is_token = below(2);
    size_t size = is_token ? sizeof(token) - 1 : sizeof(answer) - 1;
    char *text = changed(is_token ? token : answer, &size);
    struct token found;
    struct answer given;
    if (parse_token(text, size, &found)) {
        require(found.path[0] == '/' && found.data + found.size == text + size, "the token is somewhere else");
        require(strlen(found.path) + strlen(found.obd_name) + found.size < size, "the texts overlap");
    }
    if (parse_answer(text, size, &given))
        require(given.payload + given.size == text + size && given.size > 0, "the payload is somewhere else");
    free(text);
}

int main(int count, char **words)
{
    int64_t end = now() + (count > 1 ? atoi(words[1]) : 5) * 1000;
    uint64_t seed = count > 2 ? strtoull(words[2], NULL, 0) : (uint64_t)getpid() * 2654435761u + (uint64_t)now();
    long tried = 0;
    printf("fuzz: seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    for (state = seed | 1; now() < end; tried++) {
        try_arguments();
        try_message();
    }
    printf("fuzz: %ld inputs, no defect\n", 2 * tried);
    return 0;
}
